"""Training runs that are killed at random moments, also during saves: no checkpoint and no update is lost."""

import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
from commands import mlxgpt
from constants import ROOT, TINY
from training import assert_same_state

from mlx_gpt.checkpoint import store
from mlx_gpt.train.saving import BEST, LATEST

NEVER = 1 << 40
# Kills itself in the call that follows a number of calls: a write of a part of a file, a sync, a rename, or a report.
VICTIM = """
import os, signal, sys
from mlx_gpt import files
from mlx_gpt.checkpoint import store
from mlx_gpt.cli import follow
from mlx_gpt.cli.main import main

left = int(sys.argv.pop(1))

def count():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(function):
    def call(*arguments, **options):
        count()
        result = function(*arguments, **options)
        count()
        return result
    return call

def halves(data):
    for half in (data[: len(data) // 2], data[len(data) // 2 :]):
        count()
        yield half

write = files.write_atomic
store.write_atomic = lambda path, chunks: write(path, (half for data in chunks for half in halves(data)))
os.fsync, os.replace, follow.echo_json = counted(os.fsync), counted(os.replace), counted(follow.echo_json)
main()
"""


def arguments(folder, *more):
    settings = [f"--set={k}={v}" for k, v in TINY.items()] + ["--set=data.val_fraction=0.002", "--batch=2"]
    settings += ["--iters=12", "--eval-every=4", "--sample-every=0", "--set=train.save_minutes=1e-5"]
    settings += ["--set=optimizer.ema_decay=0.9"]
    return ["train", "--corpus=pydocs", *settings, "--json", *more, "--out", str(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = mlxgpt(*arguments(folder), cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def killed(folder, calls, seconds, *more):
    """Runs a process that kills itself after a number of calls, or is killed after a time.

    Returns:
        Its reports, and whether it came to its end before.
    """
    command = [sys.executable, "-c", VICTIM, str(calls), *arguments(folder, *more)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder.parent, env=environment, stdout=-1, stderr=-1, text=True) as running:
        try:
            out, errors = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            out, errors = running.communicate()
    assert running.returncode in (0, -signal.SIGKILL), errors
    lines = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in lines], running.returncode == 0


def newest(folder):
    """The checkpoint from which the run would resume; None if there is none."""
    found = [store.load(folder / name) for name in (BEST, LATEST) if (folder / name).exists()]
    return max(found, key=lambda checkpoint: checkpoint.header.step, default=None)


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["report"] in ("step", "eval")]
    return [(line["step"], line.get("loss"), line.get("val_loss")) for line in lines]


def test_runs_that_are_killed_anywhere_end_as_a_run_that_is_not(tmp_path, whole, attempts, draw):
    """A report of a save means that its checkpoint, or a later one, is there after every kill.

    A run is killed, and resumed or begun again in its folder, until it comes to its end.
    """
    left = attempts(2, 100)
    for number in itertools.count():
        folder, saved, is_done = tmp_path / f"run-{number}", 0, False
        while not is_done:
            resume = ["--resume"] if newest(folder) else []
            calls = draw.choice([draw.randrange(5, 120), NEVER]) if left else NEVER
            reports, is_done = killed(folder, calls, draw.uniform(0.5, 3) if left and calls == NEVER else 300, *resume)
            left -= bool(left and not is_done)
            saved = max([saved, *(line["step"] for line in reports if line["report"] == "save")])
            assert not saved or newest(folder).header.step >= saved
        assert curve(folder) == curve(whole)
        assert sorted(os.listdir(folder)) == sorted(os.listdir(whole))
        assert_same_state(store.load(folder / BEST), store.load(whole / BEST))
        # A run that is killed between its last two saves is complete: best.safetensors holds its last step.
        assert_same_state(newest(folder).as_trained(), newest(whole).as_trained())
        if not left:
            return
