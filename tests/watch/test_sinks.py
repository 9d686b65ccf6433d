"""Logs of other programs: each gets the numbers and the texts of the reports, and none ends a run."""

import os
import subprocess
import sys
import types

import pytest
from reporting import evaluation, step, stop

from mlx_gpt.errors import UserError
from mlx_gpt.train.reports import Alert, SampleReport
from mlx_gpt.watch.metrics import line_of
from mlx_gpt.watch.sinks import SINKS, GuardedSink, require_sinks
from mlx_gpt.watch.sinks.protocol import scalars, texts

SETTINGS = {"train": {"iters": 9, "dtype": "float32"}}
ALERT = Alert(kind="plateau", step=2, since=1, evidence="2.0 is no less than 2.0", advice="stop it")
REPORTS = [step(1, rule_lrs={"muon": 0.02}), step(2, loss=float("nan")), evaluation(2, metrics={"H": 2.5})]
REPORTS += [SampleReport(step=2, text="to be"), ALERT, stop("iters")]


def log(name, folder, reports=REPORTS, first=0):
    """Passes the reports to a sink. Returns the notes."""
    notes = []
    sink = GuardedSink(name, notes.append, folder, SETTINGS, first)
    for report in reports:
        sink.add(line_of(report))
    sink.close()
    return notes


def test_numbers_are_named_by_their_report_and_field():
    found = scalars(line_of(REPORTS[0]))
    assert found.items() >= {"step/loss": 3.5, "step/rule_lrs/muon": 0.02, "step/tokens": 100}.items()
    assert not {"step/step", "step/report"} & found.keys()
    assert "step/loss" not in scalars(line_of(REPORTS[1]))
    assert scalars(line_of(REPORTS[2])).items() >= {"eval/val_loss": 3.0, "eval/H": 2.5}.items()
    assert texts(line_of(REPORTS[3])) == {"sample/text": "to be"}
    assert texts(line_of(ALERT)) == {"alert/plateau": "since step 1: 2.0 is no less than 2.0; stop it"}


def test_tensorboard_reads_the_numbers_back_and_a_resumed_run_goes_on(tmp_path):
    pytest.importorskip("tensorboardX")
    assert log("tensorboard", tmp_path) == []
    assert log("tensorboard", tmp_path, [step(2, loss=3.25), step(3, loss=3.0)], first=1) == []
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [(1, 3.5), (2, 3.25), (3, 3.0)]
    assert [e.step for e in events.Scalars("step/tokens")] == [1, 2, 3]  # step 2 was made twice
    assert [e.step for e in events.Scalars("step/rule_lrs/muon")] == [1]
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_the_event_files_of_tensorboard_are_in_the_run_folder(tmp_path):
    pytest.importorskip("tensorboardX")
    assert log("tensorboard", tmp_path) == []
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert b"eval/val_loss" in path.read_bytes() and b"to be" in path.read_bytes()


@pytest.mark.slow
def test_wandb_logs_offline_and_keeps_the_id_of_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert log("wandb", tmp_path) == []
    name = (tmp_path / ".wandb-id").read_text()
    assert log("wandb", tmp_path, [step(3)], first=2) == [] and (tmp_path / ".wandb-id").read_text() == name
    assert len([path for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run")]) == 2


@pytest.mark.slow
def test_trackio_stores_the_numbers_and_a_resumed_run_goes_on(tmp_path):
    pytest.importorskip("trackio")
    code = f"""
import sys; sys.path += {[os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]!r}
from pathlib import Path
from reporting import step
from test_sinks import REPORTS, log
folder = Path({str(tmp_path)!r})
assert log("trackio", folder) == []
assert log("trackio", folder, [step(3, loss=3.0)], first=2) == []
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("mlxgpt")
print([(line["step"], line["step/loss"]) for line in SQLiteStorage.get_logs("mlxgpt", run) if "step/loss" in line])
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[(1, 3.5), (3, 3.0)]"


class Recorder:
    """Stands for the packages wandb and trackio, and for a run of theirs."""

    def __init__(self):
        self.calls, self.project = [], None

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_report_is_logged_with_its_step_and_the_run_is_finished(name, tmp_path, monkeypatch):
    fake = Recorder()
    monkeypatch.setitem(sys.modules, name, fake)
    assert log(name, tmp_path) == []
    ((_, _, options),) = [call for call in fake.calls if call[0] == "init"]
    assert options["config"] == SETTINGS and options["name"] == tmp_path.name
    logged = [(arguments[0], options) for call, arguments, options in fake.calls if call == "log"]
    steps = [options.get("step", values.get("iteration")) for values, options in logged]
    assert steps == [1, 2, 2, 2, 2, 9] and fake.calls[-1][0] == "finish"
    assert logged[0][0]["step/loss"] == 3.5 and logged[3][0]["sample/text"] == "to be"


@pytest.mark.parametrize("fails", ["made", "add", "close"])
def test_a_log_that_fails_is_off_after_one_line(fails, tmp_path, monkeypatch):
    calls = []

    class Broken:
        def __init__(self, *arguments):
            self.call("made")

        def add(self, line):
            self.call("add")

        def close(self):
            self.call("close")

        def call(self, name):
            calls.append(name)
            if name == fails:
                raise RuntimeError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "broken", types.SimpleNamespace(Broken=Broken))
    monkeypatch.setitem(SINKS, "broken", ("broken", "Broken", "sys"))
    assert log("broken", tmp_path) == ["--log broken is off from now on, the run continues: no network"]
    assert calls == {"made": ["made"], "add": ["made", "add"], "close": ["made", *["add"] * 6, "close"]}[fails]


def test_a_log_that_is_missing_or_unknown_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--log wandb needs wandb; install it with: pip install -e '\.\[wandb\]'"):
        require_sinks(("wandb",))
    with pytest.raises(UserError, match="--log aim: there is no such log; choose from tensorboard, wandb, trackio"):
        require_sinks(("aim",))
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace())
    with pytest.raises(UserError, match="--log tensorboard is given twice"):
        require_sinks(("tensorboard", "tensorboard"))
