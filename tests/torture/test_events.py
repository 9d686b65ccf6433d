"""Events under a run and between a run and its resumption: clocks, pauses, other trainers, folders and texts."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import process
from constants import TINY
from training import assert_same_state

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.data import encoding
from mlx_gpt.errors import UserError
from mlx_gpt.train.reports import EvalReport, SaveReport, StepReport, StopReport
from mlx_gpt.train.saving import LATEST

DAY = 86_400.0
TEXT = "".join(f"{i} times {i + 1} is {i * (i + 1)}\n" for i in range(300))
SETTINGS = TINY | {"data.val_fraction": 0.1, "train.batch_size": 2, "train.iters": 5, "train.eval_every": 2}
SETTINGS |= {"train.save_minutes": 1e-9, "optimizer.ema_decay": 0.9}


def begin(folder, **settings):
    """A session of a run on the file text.txt beside its folder."""
    return mlx_gpt.train(corpus=folder.parent / "text.txt", settings=SETTINGS | settings, out=folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The reports and the last checkpoint of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    (folder.parent / "text.txt").write_text(TEXT)
    return list(begin(folder)), store.load(folder / LATEST)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "run"


def saved_at_end(reports):
    """The last checkpoint that was reported as saved."""
    saves = [report for report in reports if isinstance(report, SaveReport) and not report.error]
    return store.load(Path(saves[-1].path))


# -- under a run ----------------------------------------------------------------------------------------------------


def replaced(folder):
    """Another, empty folder has the name of the run's."""
    folder.rename(folder.with_name("away"))
    folder.mkdir()


# What happens to a run folder, with a text.txt beside it, while the run goes on.
EVENTS = {
    "folder renamed": lambda folder: folder.rename(folder.with_name("away")),
    "folder removed": shutil.rmtree,
    "folder replaced": replaced,
    "lock removed": lambda folder: (folder / ".lock").unlink(),
    "metrics removed": lambda folder: (folder / "metrics.jsonl").unlink(),
    "checkpoints removed": lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
    "text changed": lambda folder: (folder.parent / "text.txt").write_text(TEXT[::-1]),
    "text truncated": lambda folder: os.truncate(folder.parent / "text.txt", 10),
    "text removed": lambda folder: (folder.parent / "text.txt").unlink(),
    "token files removed": lambda folder: shutil.rmtree(folder.parent / "cache"),
}


def test_an_event_under_a_run_changes_nothing_but_where_it_is_saved(tmp_path, whole, attempts, draw, monkeypatch):
    """The ids of the text are in a memory-mapped file in half of the runs."""
    expected, last = whole
    for number in range(attempts(2, 200)):
        folder, name = tmp_path / str(number) / "run", draw.choice(list(EVENTS))
        (folder.parent / "cache").mkdir(parents=True)
        (folder.parent / "text.txt").write_text(TEXT)
        monkeypatch.setattr(encoding, "cache_dir", lambda cache=folder.parent / "cache": cache)
        monkeypatch.setattr(encoding, "MAPPED_BYTES", draw.choice([0, 1 << 40]))
        at, reports = draw.randrange(len(expected) - 3), []
        for report in begin(folder):
            reports.append(report)
            if len(reports) == at + 1:
                EVENTS[name](folder)
        assert losses(reports) == losses(expected), (name, at)
        assert_same_state(saved_at_end(reports), last)
        shutil.rmtree(folder.parent)


def losses(reports):
    return [(r.step, r.loss) for r in reports if isinstance(r, StepReport | EvalReport)]


def test_a_clock_that_jumps_changes_nothing(folder, whole, attempts, draw, monkeypatch):
    """The clock of the system jumps by a day at a random report."""
    expected, last = whole
    for jump in draw.choices([-DAY, DAY], k=attempts(1, 20)):
        plain, at, reports = time.time, draw.randrange(len(expected)), []
        for report in begin(folder):
            reports.append(report)
            if len(reports) == at + 1:
                monkeypatch.setattr(time, "time", lambda plain=plain, jump=jump: plain() + jump)
        monkeypatch.setattr(time, "time", plain)
        assert losses(reports) == losses(expected)
        assert_same_state(saved_at_end(reports), last)
        assert all(0 <= r.seconds < DAY / 2 and 0 <= r.elapsed < DAY / 2 for r in reports if isinstance(r, StepReport))
        shutil.rmtree(folder)


def test_a_time_budget_does_not_follow_the_clock_of_the_system(folder, monkeypatch):
    """The clock jumps a day forwards at each report. The run still makes the steps of its plan."""
    jumps, plain = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: plain() + jumps[0])
    reports = []
    for report in begin(folder, **{"train.minutes": 60, "train.iters": 8}):
        reports.append(report)
        jumps[0] += DAY
    assert isinstance(reports[-1], StopReport) and (reports[-1].step, reports[-1].reason) == (8, "iters")


# -- other processes ------------------------------------------------------------------------------------------------


def command(folder, *more):
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    return process("train", "--corpus=text.txt", *settings, "--out", folder, *more, cwd=folder.parent)


def test_a_process_that_is_stopped_and_continued_trains_as_if_it_had_not_been(tmp_path, folder, whole, attempts, draw):
    left = attempts(2, 200)
    while left:
        running = command(folder)
        while left:
            try:
                running.wait(draw.uniform(0.02, 0.6))
                break
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGSTOP)
                time.sleep(draw.uniform(0, 0.2))
                running.send_signal(signal.SIGCONT)
                left -= 1
        _, errors = running.communicate(timeout=200)
        assert running.returncode == 0, errors
        assert_same_state(store.load(folder / LATEST), whole[1])
        shutil.rmtree(folder)


def test_of_several_trainers_in_one_folder_one_trains(folder, whole, long_attempts, draw):
    """The others end with exit code 4 and one line."""
    for _ in range(long_attempts(10)):
        running = []
        for _ in range(3):
            time.sleep(draw.choice([0, 0, 0.3]))
            running.append(command(folder))
        results = [(process.communicate(timeout=200)[1], process.returncode) for process in running]
        assert sorted(code for _, code in results)[0] == 0 and {code for _, code in results} <= {0, 2, 4}, results
        refused = [errors for errors, code in results if code]
        assert len(refused) == 2, results
        assert all("another trainer is running" in e or "already holds a run" in e for e in refused), results
        assert_same_state(store.load(folder / LATEST), whole[1])
        shutil.rmtree(folder)


# -- between a run and its resumption -------------------------------------------------------------------------------

# What happens to a text between a run and its resumption.
CHANGES = {
    "changed": lambda path, draw: path.write_text(TEXT.replace(str(draw.randrange(10)), "x")),
    "truncated": lambda path, draw: os.truncate(path, draw.randrange(len(TEXT))),
    "longer": lambda path, draw: path.write_text(TEXT + draw.choice(["x", "1 times 2", "\n\n\n"])),
    "removed": lambda path, draw: path.unlink(),
    "a folder": lambda path, draw: path.unlink() or path.mkdir(),
    "not UTF-8": lambda path, draw: path.write_bytes(b"\xff" + TEXT.encode()),
}


def test_a_run_whose_text_was_changed_is_refused_and_goes_on_with_the_text_as_it_was(folder, attempts, draw):
    text = folder.parent / "text.txt"
    list(begin(folder, **{"train.iters": 3}))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(attempts(4, 300)):
        draw.choice(list(CHANGES.values()))(text, draw)
        with pytest.raises(UserError) as refused:
            mlx_gpt.train(resume=folder)
        assert "\n" not in str(refused.value) and "text" in str(refused.value)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        if text.is_dir():
            text.rmdir()
        text.write_text(TEXT)
    assert list(mlx_gpt.train(resume=folder, settings={"train.iters": 5}))[-1].step == 5
