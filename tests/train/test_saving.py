"""Saves that fail: the run goes on, its last state is kept somewhere, and another run's folder is left alone."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from training import assert_same_state, trainer

from mlx_gpt.checkpoint import store
from mlx_gpt.errors import OutOfRoom, UserError
from mlx_gpt.train.reports import SaveReport, StepReport
from mlx_gpt.train.saving import BEST, LATEST


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.replace({"train.iters": 12, "train.eval_every": 3, "train.patience": 0})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run folder. The system's temporary folder is another one beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "runs/run").mkdir(parents=True)
    return tmp_path / "runs/run"


def reports_of(made, at_step, **run):
    """Trains to the end. Calls at_step[n] when step n is reported."""
    seen = []
    for report in made.run(**run):
        seen.append(report)
        if isinstance(report, StepReport):
            at_step.get(report.step, int)()
    return seen


def saves(reports):
    return [report for report in reports if isinstance(report, SaveReport)]


def test_a_folder_that_is_moved_and_moved_back_loses_no_progress(folder, config):
    away = folder.with_name("away")
    seen = reports_of(trainer(folder, config), {2: lambda: folder.rename(away), 8: lambda: away.rename(folder)})
    failed = [report for report in saves(seen) if report.error]
    assert failed and all(report.step in (3, 6) and str(folder) in report.error for report in failed)
    assert seen[-1].saved and store.load(folder / LATEST).header.step == 12


def test_the_last_state_of_a_run_without_its_folder_is_saved_beside_it(folder, config):
    (folder.parent / "whole").mkdir()
    list(trainer(folder.parent / "whole", config).run())
    seen = reports_of(trainer(folder, config), {2: lambda: shutil.rmtree(folder)})
    assert not seen[-1].saved and not folder.exists()
    refused, saved = saves(seen)[-2:]
    path = Path(saved.path)
    assert refused.error and saved.error is None and path.name == LATEST
    assert path.parent.parent == folder.parent and path.parent.name.startswith("run-rescued-")
    assert_same_state(store.load(path), store.load(folder.parent / "whole" / LATEST))


def test_without_a_place_beside_its_folder_the_last_state_is_saved_in_the_temporary_folder(folder, config, tmp_path):
    seen = reports_of(trainer(folder, config), {2: lambda: shutil.rmtree(folder.parent)})
    *refused, saved = saves(seen)[-3:]
    assert all(report.error for report in refused) and saved.error is None and not seen[-1].saved
    assert Path(saved.path).is_relative_to(tmp_path / "temporary") and store.load(Path(saved.path)).header.step == 12


def test_a_run_needs_space_for_both_checkpoints_and_a_temporary_file(folder, config, monkeypatch):
    """On resume, less the space of the checkpoints that are there."""
    made, free = trainer(folder, config), 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    for present in ([], [LATEST], [LATEST, BEST]):
        for name in present:
            (folder / name).write_bytes(bytes(made.state_bytes))
        free = (3 - len(present)) * made.state_bytes - 1
        with pytest.raises(OutOfRoom, match="MB free"):
            next(made.run())
        free += 1
        next(made.run())
    (folder / BEST).write_bytes(bytes(9 * made.state_bytes))  # a larger file spares no more than one of this run's
    free -= 1
    with pytest.raises(OutOfRoom, match="MB free"):
        next(made.run())


def test_where_nothing_can_be_saved_every_place_is_named(folder, config, tmp_path, monkeypatch):
    def refuse(path, checkpoint):
        raise UserError(f"{path}: Permission denied")

    monkeypatch.setattr(store, "save", refuse)
    seen = reports_of(trainer(folder, config), {})
    last = saves(seen)[-3:]
    assert seen[-1].step == 12 and not seen[-1].saved
    for report, place in zip(last, (folder, folder.parent, tmp_path / "temporary"), strict=True):
        assert report.path.startswith(str(place)) and str(place) in report.error
    assert [*folder.parent.iterdir()] == [folder] and not [*(tmp_path / "temporary").iterdir()]


def test_a_run_writes_nothing_to_a_folder_that_is_not_its_own(folder, config):
    def require():
        if made.header.step >= 3:
            raise UserError("not your folder")

    made = trainer(folder, config)
    seen = reports_of(made, {}, require_folder=require)
    assert not [*folder.iterdir()] and not seen[-1].saved
    assert {report.error for report in saves(seen)[:-1]} == {"not your folder"}
