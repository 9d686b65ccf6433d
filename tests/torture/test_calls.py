"""Saves, loads and runs that are broken at each call by which they use files."""

import errno
import itertools
import shutil
from unittest import mock

import pytest
from checkpoints import assert_same, checkpoint
from commands import mlxgpt
from constants import TINY
from faults import END, SHORT, Dead, Disk, each_call
from training import assert_same_state

from mlx_gpt.checkpoint import store
from mlx_gpt.errors import UserError
from mlx_gpt.files import remove_abandoned
from mlx_gpt.train.saving import BEST, LATEST, CheckpointWriter

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES]
# Whether the power fails too, and then whether data and names that were not synced stay on the disk.
POWER = [None, *itertools.product([False, True], repeat=2)]
OLD, NEW = checkpoint(0), checkpoint(1, step=8)


@pytest.fixture
def path(tmp_path):
    """A folder with a checkpoint."""
    (tmp_path / "run").mkdir()
    store.save(tmp_path / "run" / LATEST, OLD)
    return tmp_path / "run" / LATEST


def assert_old_or_new(path, is_new):
    found = store.load(path)
    assert_same(found, NEW if is_new or found.header.step == NEW.header.step else OLD)


@pytest.mark.parametrize("power", POWER)
def test_death_at_each_call_of_a_save(path, power, tally):
    good = path.read_bytes()
    for disk in each_call(lambda at: Disk(path.parent, at)):
        is_saved = False
        try:
            with disk:
                store.save(path, NEW)
                is_saved = True
        except Dead:
            pass
        if power:
            disk.power_off(*power)
        assert_old_or_new(path, is_saved)
        remove_abandoned(path.parent)
        assert [*path.parent.iterdir()] == [path]
        path.write_bytes(good)
        tally()


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("number", ERRORS)
def test_an_error_of_each_call_of_a_save(path, number, lasting, tally):
    good = path.read_bytes()
    for disk in each_call(lambda at: Disk(path.parent, at, number, lasting)):
        is_saved = False
        try:
            with disk:
                store.save(path, NEW)
                is_saved = True
        except UserError as error:
            assert str(path) in str(error) and disk.is_met
        assert_old_or_new(path, is_saved)
        remove_abandoned(path.parent)
        assert [*path.parent.iterdir()] == [path]
        path.write_bytes(good)
        tally()


@pytest.mark.parametrize("fault", [errno.EIO, errno.EACCES, SHORT, END])
def test_an_error_of_each_read_of_a_load(path, fault, tally):
    """A load gives the whole checkpoint, or an error that names the file. SHORT is no error."""
    for disk in each_call(lambda at: Disk(path.parent, at, fault, reads=True)):
        with disk:
            try:
                assert_same(store.load(path), OLD)
            except UserError as error:
                assert str(path) in str(error) and fault != SHORT
            else:
                assert fault in (SHORT, END) or not disk.is_met
        tally()


# -- whole runs -----------------------------------------------------------------------------------------------------

OPTIONS = [f"--set={k}={v}" for k, v in TINY.items()] + ["--set=data.val_fraction=0.1", "--batch=2", "--iters=4"]
OPTIONS += ["--eval-every=2", "--sample-every=0", "--set=train.save_minutes=1e-9", "--set=optimizer.ema_decay=0.9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts, beside its text."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    (folder.parent / "text.txt").write_text("".join(f"{i} times {i + 1} is {i * (i + 1)}\n" for i in range(300)))
    assert train(folder).returncode == 0
    return folder


def train(folder):
    """Begins a run in a folder, or continues it."""
    resume = ["--resume"] if newest(folder) else []
    return mlxgpt("train", "--corpus=text.txt", *OPTIONS, *resume, f"--out={folder}", cwd=folder.parent)


def newest(folder):
    """The checkpoint with the most steps; None if there is none."""
    found = [store.load(folder / name) for name in (BEST, LATEST) if (folder / name).exists()]
    return max(found, key=lambda checkpoint: checkpoint.header.step, default=None)


def broken(folder, disk):
    """Trains until a disk breaks the run or the run ends.

    Returns:
        The result of the command, or None after a death, and the step of the last save that was reported.
    """
    saved, save = [0], CheckpointWriter.save

    def recorded(*arguments):
        report = save(*arguments)
        saved.extend([report.step] * (report.error is None))
        return report

    with mock.patch.object(CheckpointWriter, "save", recorded):
        try:
            with disk:
                return train(folder), saved[-1]
        except Dead:
            return None, saved[-1]


def assert_ends_as(folder, whole):
    """Continues the run. Asserts that it ends with the state of the whole run and leaves no other files."""
    done = train(folder)
    assert done.returncode == 0, done.stderr
    assert_same_state(newest(folder).as_trained(), newest(whole).as_trained())
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.fixture
def folder(tmp_path, whole):
    shutil.copy(whole.parent / "text.txt", tmp_path)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def calls(whole):
    """The number of calls of a whole run."""
    folder = whole.with_name("counted")
    with Disk(whole.parent) as disk:
        assert train(folder).returncode == 0
    return len(disk.calls)


def test_death_at_each_call_of_a_run(folder, whole, calls, attempts, draw):
    """After the death, the power may fail too. The next process ends the run."""
    places = [(at, power) for at in range(calls) for power in POWER]
    for at, power in draw.sample(places, attempts(1, calls, len(places))):
        disk = Disk(folder.parent, at)
        _, saved = broken(folder, disk)
        assert disk.is_met
        if power:
            disk.power_off(*power)
        assert not saved or newest(folder).header.step >= saved
        assert_ends_as(folder, whole)
        shutil.rmtree(folder)


def test_an_error_of_each_call_of_a_run(folder, whole, calls, attempts, draw):
    """The run goes on, or ends with one line. The next process ends it as if nothing had happened."""
    places = [*itertools.product(range(calls), ERRORS, [False, True])]
    for at, number, lasting in draw.sample(places, attempts(2, 2 * calls, len(places))):
        disk = Disk(folder.parent, at, number, lasting)
        done, saved = broken(folder, disk)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode in (2, 6) and len(errors) == 1, (disk.calls[at], done)
        rescued = [*folder.parent.glob("run-rescued-*")]
        assert not saved or newest(rescued[0] if rescued else folder).header.step >= saved
        for path in rescued:
            assert_same_state(newest(path).as_trained(), newest(whole).as_trained())
            shutil.rmtree(path)
        assert_ends_as(folder, whole)
        shutil.rmtree(folder)
