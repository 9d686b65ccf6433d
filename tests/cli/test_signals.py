"""Training ended by signals and kills, and resumed."""

import json
import os
import signal
import time

import pytest
from commands import mlxgpt, process
from constants import SMALL, TINY
from training import assert_same_state

from mlx_gpt.checkpoint import store
from mlx_gpt.train.saving import BEST, LATEST


def arguments(folder, *more):
    settings = [f"--set={k}={v}" for k, v in TINY.items()] + ["--set=data.val_fraction=0.002", "--batch=4"]
    settings += ["--iters=60", "--eval-every=10", "--sample-every=0", "--set=train.save_minutes=0.001"]
    return ["train", "--corpus=pydocs", *settings, "--json", *more, "--out", folder]


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["report"] in ("step", "eval")]
    return [(line["step"], line.get("loss"), line.get("val_loss")) for line in lines]


def run_to(process, text):
    """Reads the output up to a line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}")


def resume(folder):
    done = mlxgpt(*arguments(folder, "--resume"), cwd=folder.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert mlxgpt(*arguments(folder), cwd=folder.parent).returncode == 0
    return folder


def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, whole_run):
    folder = tmp_path / "killed"
    with process(*arguments(folder), cwd=tmp_path) as running:
        run_to(running, '"report": "save"')
        run_to(running, '"report": "step"')
        running.kill()
    resume(folder)
    assert curve(folder) == curve(whole_run)
    for name in (LATEST, BEST):
        assert_same_state(store.load(folder / name), store.load(whole_run / name))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_after_the_current_step(tmp_path, whole_run, number, code):
    folder = tmp_path / "stopped"
    with process(*arguments(folder), cwd=tmp_path) as running:
        run_to(running, '"step": 7,')
        running.send_signal(number)
        running.send_signal(number)  # at once: as good as one
        rest = running.stdout.read().splitlines()
    assert running.returncode == code
    assert json.loads(rest[-1])["reason"] == "signal"
    assert 7 <= store.load(folder / LATEST).header.step < 60
    resume(folder)
    assert curve(folder) == curve(whole_run)


def test_a_background_job_hears_of_an_interrupt_and_nohup_of_no_hang_up(tmp_path):
    """A shell starts background jobs with SIGINT ignored, and nohup with SIGHUP."""

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    folder = tmp_path / "background"
    with process(*arguments(folder), cwd=tmp_path, preexec_fn=ignore) as running:
        run_to(running, '"step": 3,')
        running.send_signal(signal.SIGHUP)
        run_to(running, '"step": 9,')
        running.send_signal(signal.SIGINT)
        running.stdout.read()
    assert running.returncode == 130 and (folder / LATEST).exists()


@pytest.mark.parametrize("closed", [False, True])
def test_a_second_signal_ends_at_once_even_if_the_output_is_closed(tmp_path, closed):
    slow = ["train", "--preset=model-s", "--batch=96", "--corpus=pydocs", "--set=train.log_every=1"]
    with process(*slow, "--out", tmp_path / "twice", cwd=tmp_path) as running:
        run_to(running, "Iter    1/")
        if closed:
            running.stdout.close()
        time.sleep(0.3)  # the next update, which takes seconds, has begun
        running.send_signal(signal.SIGTERM)
        time.sleep(1.0)  # signals that are noticed within 0.3 s are taken for one
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 143
        assert "Traceback" not in running.stderr.read()
    assert "checkpoint.safetensors" not in os.listdir(tmp_path / "twice")


def test_a_signal_after_the_output_was_closed_leaves_a_saved_run(tmp_path):
    """The note on the signal is then the first text that cannot be written. It comes from another thread."""
    folder = tmp_path / "closed"
    quiet = [option for option in SMALL if option not in ("--iters=12", "--eval-every=6")]
    quiet += ["--iters=1000000", "--eval-every=100", "--set=train.log_every=1000000"]
    with process("train", "--corpus=pydocs", *quiet, "--out", folder, cwd=tmp_path) as running:
        run_to(running, "eval @100")
        running.stdout.close()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 141
        assert "Traceback" not in running.stderr.read()
    assert store.load(folder / LATEST).header.step >= 100
