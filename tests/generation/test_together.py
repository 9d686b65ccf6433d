"""Several texts generated at once: each is what it is alone."""

import threading

import pytest

from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.job import Job
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.scheduler import Scheduler
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.generation.together import generate_all


def jobs(run, seeds):
    how = Sampling(temperature=1.0)
    return [
        Job(prompt=[3, 4], sampling=how, seed=seed, max_tokens=5 + seed, writer=TextWriter(run.tokenizer))
        for seed in seeds
    ]


def test_texts_do_not_depend_on_their_number_and_order(small_run):
    seeds = [0, 7, 3, 12, 1, 9]
    found = generate_all(small_run.model, jobs(small_run, seeds), 4)
    assert [piece.num_drawn for piece in found] == [5 + seed for seed in seeds]
    backwards = generate_all(small_run.model, jobs(small_run, seeds[::-1]), 2)
    assert [piece.text for piece in backwards[::-1]] == [piece.text for piece in found]
    assert len({piece.text for piece in found}) == len(seeds)


def test_no_jobs_need_no_engine():
    assert generate_all(None, []) == []


def test_a_failed_text_is_an_error(small_run, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(Scheduler, "_launch_step", fail)
    with pytest.raises(EngineFailed, match="the engine failed"):
        generate_all(small_run.model, jobs(small_run, [1, 2]))


def test_no_thread_is_left_also_after_an_interrupt(small_run, monkeypatch):
    before = set(threading.enumerate())
    generate_all(small_run.model, jobs(small_run, [1, 2]))
    assert set(threading.enumerate()) == before
    submit = Scheduler.submit

    def interrupted(*arguments):
        submit(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_all(small_run.model, jobs(small_run, [100, 200]))
    assert set(threading.enumerate()) == before
