"""A session of training: it locks its folder, ends saved when asked to, and leaves a complete run alone."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from constants import TINY
from faults import Disk

from mlx_gpt.checkpoint import store
from mlx_gpt.config.presets import resolve
from mlx_gpt.errors import OutOfRoom, ResumeRefused, Unreadable, UserError
from mlx_gpt.files import FolderLock
from mlx_gpt.run import folder as folders
from mlx_gpt.run.folder import folder_of
from mlx_gpt.run.planning import plan
from mlx_gpt.run.request import Request, ignore
from mlx_gpt.run.session import Session
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import EvalReport, SampleDue, SaveReport, StepReport, StopReport, kind
from mlx_gpt.train.saving import BEST, LATEST
from mlx_gpt.train.trainer import Trainer
from mlx_gpt.watch.metrics import read_metrics

SETTINGS = TINY | {"train.batch_size": 2, "train.iters": 6, "train.eval_every": 3, "train.eval_windows": 2}


def session_in(folder, settings=None, note=ignore, **more) -> Session:
    return Session(Request(settings=SETTINGS | (settings or {}), out=folder, **more), note)


def test_a_session_trains_its_run_and_keeps_its_settings(tmp_path):
    session = session_in(tmp_path / "run")
    with pytest.raises(ResumeRefused, match="another trainer"):
        FolderLock(tmp_path / "run")
    reports = list(session)
    assert [r.step for r in reports if isinstance(r, StepReport)] == [1, 2, 3, 4, 5, 6]
    assert isinstance(reports[-1], StopReport) and reports[-1].reason == "iters"
    FolderLock(tmp_path / "run").release()
    assert resolve(str(tmp_path / "run/run.toml")) == session.trainer.config
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(reports)


def test_nothing_happens_before_the_first_report(tmp_path):
    with contextlib.closing(session_in(tmp_path / "run")):
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    FolderLock(tmp_path / "run").release()


def test_a_new_run_names_the_settings_that_have_no_effect_and_that_were_asked_for(tmp_path):
    notes: list[str] = []
    for folder, more in (("run", {}), ("tuned", {"fine_tune": tmp_path / "run"})):
        notes.clear()
        list(session_in(tmp_path / folder, {"model.n_expert": 4}, notes.append, **more))
        assert [n for n in notes if "no effect" in n] == ["model.n_expert has no effect without model.ffn=moe"]


def test_a_session_that_is_stopped_ends_saved(tmp_path):
    session = session_in(tmp_path / "run", settings={"train.iters": 1000})
    reports = []
    for report in session:
        reports.append(report)
        if isinstance(report, StepReport) and report.step == 2:
            session.stop()
    assert reports[-1].reason == "signal" and reports[-1].step == 2
    assert isinstance(reports[-2], SaveReport) and reports[-2].path == str(tmp_path / "run/checkpoint.safetensors")


def test_a_run_that_was_stopped_before_its_last_evaluation_makes_it_when_it_resumes(tmp_path):
    settings = {"train.iters": 7}  # the last evaluation is not one of those that are due every three updates
    [*_, whole] = session_in(tmp_path / "whole", settings=settings)
    session = session_in(tmp_path / "run", settings=settings)
    for report in session:
        if isinstance(report, StepReport) and report.step == 7:
            session.stop()
    assert isinstance(report, StopReport) and (report.reason, report.step) == ("signal", 7)
    resumed = list(session_in(tmp_path / "run", settings=settings, resume=str(tmp_path / "run")))
    assert [r.step for r in resumed if isinstance(r, EvalReport)] == [7]
    assert (resumed[-1].best_loss, resumed[-1].best_step, resumed[-1].reason) == (
        whole.best_loss, whole.best_step, "iters",
    )  # fmt: skip


def test_a_complete_run_stays_as_it_is(tmp_path):
    list(session_in(tmp_path / "run"))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "run").iterdir()}
    session = session_in(tmp_path / "run", resume=str(tmp_path / "run"))
    assert session.start.is_complete and list(session) == []
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "run").iterdir()} == before


def test_a_folder_with_a_run_is_not_trained_over(tmp_path):
    list(session_in(tmp_path / "run"))
    with pytest.raises(UserError, match="already holds a run"):
        session_in(tmp_path / "run")


def test_a_run_that_is_still_training_is_refused_before_its_checkpoints_are_read(tmp_path):
    """Otherwise the resumed run could go on from a state that the other process has replaced since."""
    run = tmp_path / "run"
    list(session_in(run))
    (run / BEST).write_bytes(b"corrupt")  # a resume renames a corrupt file
    before, lock = sorted(run.iterdir()), FolderLock(run)
    for source in (run, run / LATEST):
        with pytest.raises(ResumeRefused, match="another trainer"):
            session_in(run, {"train.iters": 8}, resume=str(source))
    assert sorted(run.iterdir()) == before
    lock.release()
    plan(begin(Request(resume=str(run), settings={"train.iters": 8}), ignore), ignore)
    assert sorted(run.iterdir()) == before  # a plan changes nothing
    with contextlib.closing(session_in(run, {"train.iters": 8}, resume=str(run))) as session:
        assert session.start.header.step == 6 and (run / f"{BEST}.corrupt-1").exists()


def test_a_checkpoint_that_the_system_fails_to_read_is_not_set_aside(tmp_path):
    """It may be valid, and have more steps than the other one."""
    run = tmp_path / "run"
    list(session_in(run))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused = 0
    for at in itertools.count():
        with Disk(run, at, errno.EIO, reads=True) as disk:
            try:
                begin(Request(resume=str(run)), ignore)
            except Unreadable:
                refused += 1
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        if not disk.is_met:
            break
    assert refused >= 4


KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_gpt.files import write_atomic
def chunks():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), chunks())
"""


def test_a_resume_removes_the_temporary_files_of_dead_processes_only(tmp_path):
    run = tmp_path / "run"
    list(session_in(run))
    before = sorted(run.iterdir())
    subprocess.run([sys.executable, "-c", KILLED, run / LATEST], check=False)
    (left,) = set(run.iterdir()) - set(before)
    kept = [run / f".{LATEST}.tmp-{os.getppid()}", run / ".notes.tmp-today"]
    for path in kept:
        path.touch()
    lock = FolderLock(run)
    with pytest.raises(ResumeRefused, match="another trainer"):
        session_in(run, {"train.iters": 8}, resume=str(run))
    lock.release()
    assert left.exists()  # while another trainer has the folder, nothing is removed
    session_in(run, {"train.iters": 8}, resume=str(run)).close()
    assert sorted(run.iterdir()) == sorted([*before, *kept])


def test_a_session_that_cannot_begin_leaves_its_folder_unlocked(tmp_path):
    list(session_in(tmp_path / "run"))
    with pytest.raises(ResumeRefused, match="val_fraction") as refused:
        session_in(tmp_path / "run", {"data.val_fraction": 0.3}, resume=str(tmp_path / "run"))
    FolderLock(tmp_path / "run").release()
    assert refused.value.exit_code == 4


def test_a_run_whose_folder_was_replaced_leaves_the_new_run_alone(tmp_path):
    first, seen = session_in(tmp_path / "run"), []
    for report in first:
        seen.append(report)
        if isinstance(report, StepReport) and report.step == 2:
            shutil.rmtree(tmp_path / "run")
            list(session_in(tmp_path / "run", {"train.seed": 5}))
            new = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == new
    saves = [report for report in seen if isinstance(report, SaveReport)]
    assert "no longer the folder of this run" in saves[0].error and not seen[-1].saved
    assert saves[-1].error is None  # beside the folder
    with contextlib.closing(session_in(None, {"train.iters": 8}, resume=saves[-1].path)) as again:
        assert again.start.header.step == 6 and again.folder == Path(saves[-1].path).parent


def test_new_folders_are_named_after_preset_and_text_and_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "RUNS", tmp_path)
    start = begin(Request(preset="model-xs", settings={"data.corpus": ("pydocs",)}), ignore)
    for name in ("model-xs-pydocs", "model-xs-pydocs-2", "model-xs-pydocs-3"):
        folder = folder_of(Request(preset="model-xs"), start)
        assert folder == tmp_path / name
        folder.mkdir()
    assert folder_of(Request(), start) == tmp_path / "model-xs-pydocs-4"  # the preset of this network


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_that_fills_in_the_middle_resumes_as_if_it_had_not_stopped(tmp_path, shuffle):
    """Its windows are rearranged, its validation is not, and its weights are the same after a resume."""
    (tmp_path / "text.txt").write_text("<|eos|>".join("abcdefgh"[i % 8 :] * (i + 9) for i in range(30)))
    settings = {"data.corpus": (str(tmp_path / "text.txt"),), "data.fim_rate": 0.5, "train.shuffle": shuffle}
    for name in ("whole", "parts"):
        session = session_in(tmp_path / name, settings)
        for report in session:
            if name == "parts" and isinstance(report, StepReport) and report.step == 3:
                session.stop()
    assert list(session_in(tmp_path / "parts", resume=str(tmp_path / "parts")))[-1].reason == "iters"
    whole, parts = (store.load(tmp_path / name / LATEST) for name in ("whole", "parts"))
    assert parts.weights.keys() == whole.weights.keys()
    assert all((parts.weights[key] == whole.weights[key]).all() for key in whole.weights)
    plain = session_in(tmp_path / "plain", settings | {"data.fim_rate": 0.0})
    list(plain)
    assert plain.trainer.header.vocab_size + 3 == whole.header.vocab_size


def test_a_model_without_special_tokens_does_not_learn_to_fill_in_the_middle(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefgh" * 200)
    list(session_in(tmp_path / "run", {"data.corpus": (str(tmp_path / "text.txt"),)}))
    with pytest.raises(UserError, match="data.fim_rate=0.5: the tokenizer has no special tokens"):
        list(session_in(tmp_path / "run", {"data.fim_rate": 0.5, "train.iters": 9}, resume=str(tmp_path / "run")))


def test_an_error_is_the_last_report_with_its_alerts(tmp_path, monkeypatch):
    def fails(trainer, require_folder):
        yield StepReport(step=1, loss=4.0, grad_norm=1.0, lr=0.1, tokens=1, seconds=1, elapsed=1, skipped=3)
        yield StepReport(step=2, loss=4.0, grad_norm=1.0, lr=0.1, tokens=2, seconds=1, elapsed=2, skipped=4)
        raise OutOfRoom("out of memory")

    monkeypatch.setattr(Trainer, "run", fails)
    found = []
    session = session_in(tmp_path / "run")
    with pytest.raises(OutOfRoom, match="out of memory"):
        for report in session:
            found.append(report)
            assert session.record(SampleDue(step=report.step)) == []  # others may record reports too
    assert [kind(report) for report in found] == ["step", "alert", "step", "failure", "alert"]
    assert (found[-2].error, found[-2].message) == ("OutOfRoom", "out of memory")
    assert [report.kind for report in found if kind(report) == "alert"] == ["diverging", "out-of-memory"]
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["report"] for line in lines if line["report"] != "sampledue"] == list(map(kind, found))
    assert session.record(found[0]) == session.check(1e9) == []  # after the end, nothing is recorded


def test_a_resumed_run_repeats_no_alert(tmp_path, monkeypatch):
    list(session_in(tmp_path / "run"))
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"report": "save", "step": 6, "error": "disk full"}\n')
    full = SaveReport(step=7, path="x", error="disk full")
    monkeypatch.setattr(Trainer, "run", lambda *_: iter([full]))
    resumed = session_in(tmp_path / "run", {"train.iters": 9}, resume=str(tmp_path / "run"))
    assert list(resumed) == [full]
