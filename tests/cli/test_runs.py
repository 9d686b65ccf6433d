"""`mlxgpt runs`, and the options of `mlxgpt train` that pass reports on."""

import json
import shutil
import sys
import types

import pytest
from commands import mlxgpt
from constants import SMALL

from mlx_gpt.watch.sinks import SINKS


@pytest.fixture
def runs(home, tmp_path):
    """A folder with the finished run of `home` and a run without a checkpoint."""
    shutil.copytree(home / "runs/custom-pydocs", tmp_path / "runs/done")
    shutil.copytree(home / "runs/custom-pydocs", tmp_path / "runs/empty")
    for path in (tmp_path / "runs/empty").glob("*.safetensors"):
        path.unlink()
    return tmp_path


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_runs_are_listed_as_a_table_and_as_json(runs):
    done = mlxgpt("runs", cwd=runs)
    assert done.returncode == 0 and [line.split()[:2] for line in done.stdout.splitlines()[1:]] in (
        [["done", "finished"], ["empty", "finished"]],
        [["empty", "finished"], ["done", "finished"]],
    )
    assert done.stdout == mlxgpt("runs", "list", "runs", cwd=runs).stdout
    found = json.loads(mlxgpt("runs", "runs/done", "--json", cwd=runs).stdout)
    (stop,) = [line for line in lines_of(runs / "runs/done") if line["report"] == "stop"]
    assert [(run["step"], run["best_loss"], run["tokens"]) for run in found] == [
        (12, stop["best_loss"], stop["tokens"])
    ]


def test_clean_says_what_it_would_delete_and_deletes_it_only_if_told_to(runs):
    asked = mlxgpt("runs", "clean", cwd=runs)
    assert asked.returncode == 0 and "runs/empty: has no checkpoint (finished, step 12, " in asked.stderr
    assert "add --yes to delete it" in asked.stderr and (runs / "runs/empty/metrics.jsonl").exists()
    assert json.loads(mlxgpt("runs", "clean", "--json", cwd=runs).stdout)[0]["run"] == "runs/empty"
    assert mlxgpt("runs", "clean", "runs", "--yes", cwd=runs).returncode == 0
    assert [path.name for path in (runs / "runs").iterdir()] == ["done"]
    assert "runs: nothing to delete" in mlxgpt("runs", "clean", cwd=runs).stderr
    mlxgpt("runs", "clean", "--checkpoints", "--yes", cwd=runs)
    assert [path.name for path in (runs / "runs/done").glob("*.safetensors")] == ["best.safetensors"]


@pytest.mark.parametrize("arguments, words", [(["absent"], "absent: no such folder"), (["clean", "--keep=-1"], "keep")])
def test_wrong_usage_is_named(tmp_path, arguments, words):
    done = mlxgpt("runs", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def ill(*more):
    """Arguments of a run that diverges at once, because its learning rate is far too high."""
    small = [option for option in SMALL if not option.startswith("--eval-every")]
    return ["train", "--corpus=pydocs", *small, "--lr=9", "--eval-every=50", "--out=ill", *more]


def test_an_alert_is_in_the_metrics_on_the_terminal_and_on_the_input_of_the_command(tmp_path):
    done = mlxgpt(*ill("--alert=cat >> alerts.jsonl"), cwd=tmp_path)
    (alert,) = [line for line in lines_of(tmp_path / "ill") if line["report"] == "alert"]
    assert done.returncode == 5 and alert["kind"] == "diverging" and alert["since"] >= 2
    assert f"alert @{alert['step']}: diverging since {alert['since']}: the loss is " in done.stdout
    assert [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()] == [
        {"run": "ill"} | alert
    ]


def test_a_log_gets_the_reports_and_a_failing_alert_command_changes_nothing(tmp_path, monkeypatch):
    seen = []

    class Log:
        def __init__(self, folder, settings, first):
            seen.append((str(folder), settings["train"]["iters"], first))
            self.add, self.close = seen.append, lambda: seen.append("closed")

    monkeypatch.setitem(sys.modules, "log", types.SimpleNamespace(Log=Log))
    monkeypatch.setitem(SINKS, "mine", ("log", "Log", "log"))
    done = mlxgpt(*ill("--alert=exit 7", "--log=mine"), cwd=tmp_path)
    assert done.returncode == 5 and "--alert exit 7: failed with exit code 7; the run continues" in done.stdout
    assert seen[0] == ("ill", 12, 0) and seen[1:-1] == lines_of(tmp_path / "ill") and seen[-1] == "closed"


def test_a_log_that_is_not_installed_is_told_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = mlxgpt(*ill("--log=wandb"), cwd=tmp_path)
    assert done.returncode == 2 and "pip install -e '.[wandb]'" in done.stderr and not (tmp_path / "ill").exists()


def test_samples_are_recorded(tmp_path):
    small = [option for option in SMALL if not option.startswith("--sample")]
    done = mlxgpt("train", "--corpus=pydocs", *small, "--out=run", "--sample-every=6", cwd=tmp_path)
    samples = [line for line in lines_of(tmp_path / "run") if line["report"] == "sample"]
    assert [sample["step"] for sample in samples] == [6, 12]
    assert all(sample["text"] in done.stdout for sample in samples)
