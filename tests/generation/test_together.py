"""Several texts generated at once: each is what it is alone."""

import os
import subprocess
import sys
import threading

import pytest
from constants import ROOT

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


EXIT = """
import mlx_gpt
from mlx_gpt.generation import job, sampling, text, together
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.model.gpt import GPT
letters = CharTokenizer("abc")
model = GPT(ModelConfig(n_embd=8, n_head=2, n_layer=1, block_size=8), letters.vocab_size)
made = job.Job(prompt=[2], sampling=sampling.Sampling(), seed=0, max_tokens=3, writer=text.TextWriter(letters))
if {together}:
    together.Together(model, 1, 1).write([made])  # its thread is alive when Python ends
else:
    together.generate_all(model, [made])
"""


@pytest.mark.parametrize("alive", [False, True])
def test_a_process_ends_in_order_after_its_texts(tmp_path, alive):
    """MLX keeps objects of the thread that generated the texts. Several attempts, because the order is not fixed."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):
        command = [sys.executable, "-c", EXIT.format(together=alive)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
        assert done.returncode == 0, done.stderr
