"""Training runs that are killed at random moments, also during saves: no checkpoint and no update is lost."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from commands import mlxgpt
from constants import ROOT, TINY
from crew import processes
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


# -- two processes that train together ------------------------------------------------------------------------------


# Waits for a process that died before it connected no longer than this, so that the test is shorter.
HASTY = """
from mlx_gpt.cli.main import main
from mlx_gpt.distributed import ranks
ranks.JOIN_SECONDS = 15
main()
"""


def together(folder, draw=None):
    """Trains with two processes to the end of the run, or until one of them is killed at a random moment.

    Returns:
        The steps of the saves that were reported, and whether the run came to its end.
    """
    resume = ["--resume"] if newest(folder) else []
    seconds = draw.uniform(1, 12) if draw else 300
    (folder.parent / "hasty.py").write_text(HASTY)
    options = [*arguments(folder, "--set=speed.lanes=1"), *resume]
    with processes(2, *options, folder=folder.parent, module="hasty") as started:
        victim = draw.choice(started) if draw else started[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(seconds)
        victim.kill()
        results = [(*process.communicate(timeout=200), process.returncode) for process in started]
    assert all(code in (0, 8, -signal.SIGKILL) and "Traceback" not in errors for _, errors, code in results), results
    lines = [json.loads(line) for line in results[0][0].splitlines(keepends=True) if line.endswith("\n")]
    saved = [line["step"] for line in lines if line["report"] == "save" and not line["error"]]
    return saved, [code for *_, code in results] == [0, 0]


def test_two_processes_of_which_one_is_killed_end_as_two_that_are_not(tmp_path, long_attempts, draw):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    assert together(whole)[1]
    left = long_attempts(15)
    while left:
        is_done, saved = False, [0]
        while not is_done:
            found, is_done = together(folder, draw if left else None)
            left -= bool(left and not is_done)
            saved += found
            assert max(saved) == 0 or newest(folder).header.step >= max(saved)
        assert_same_state(newest(folder).as_trained(), newest(whole).as_trained())
        shutil.rmtree(folder)


# -- system calls ---------------------------------------------------------------------------------------------------

# System calls that change files. strace ignores those marked with ? where the system does not have them.
CALLS = "write,fsync,?rename,?renameat,?renameat2,?unlink,?unlinkat,?mkdir,?mkdirat,ftruncate"


def traced(folder, *options):
    """Trains in a process of which strace follows the main thread, which writes all files."""
    resume = ["--resume"] if newest(folder) else []
    command = ["strace", "-qq", "-o", str(folder.parent / "calls"), "-e", f"trace={CALLS}", *options, sys.executable]
    command += ["-m", "mlx_gpt", *arguments(folder, *resume)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)


def broken(folder, whole, faults, attempts, draw):
    """Breaks runs at system calls, ends them in the next process, and compares them with a run that nothing breaks.

    Args:
        folder: An empty folder.
        whole: The folder of a run that nothing interrupts.
        faults: What strace does at a call.
        attempts: A function of the most attempts that there are. It returns how many are made.
        draw: Random numbers.
    """
    assert traced(folder / "run").returncode == 0
    names = re.findall(r"^(\w+)\(", (folder / "calls").read_text(), re.M)
    places = [(name, n, fault) for name in set(names) for n in range(1, names.count(name) + 1) for fault in faults]
    for name, n, fault in draw.sample(sorted(places), attempts(len(places))):
        shutil.rmtree(folder / "run")
        done = traced(folder / "run", "-e", f"inject={name}:{fault}:when={n}")
        assert done.returncode in (0, 2, 6, -signal.SIGKILL) and "Traceback" not in done.stderr, (name, n, fault, done)
        done = traced(folder / "run")
        assert done.returncode == 0, (name, n, fault, done)
        assert_same_state(newest(folder / "run").as_trained(), newest(whole).as_trained())
        assert sorted(os.listdir(folder / "run")) == sorted(os.listdir(whole))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_runs_that_die_at_a_system_call_end_as_one_that_does_not(tmp_path, whole, long_attempts, draw):
    broken(tmp_path, whole, ["signal=SIGKILL"], lambda most: long_attempts(20, most), draw)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_runs_of_which_a_system_call_fails_end_as_one_of_which_none_does(tmp_path, whole, long_attempts, draw):
    errors = [f"error={name}" for name in ("ENOSPC", "EDQUOT", "EIO", "EACCES")]
    broken(tmp_path, whole, errors, lambda most: long_attempts(40, most), draw)
