"""The state of runs, from their files alone."""

import json
import os
import random
import shutil

import pytest
from mutations import mutated, mutated_lines
from reporting import evaluation, step, stop

from mlx_gpt.files import FolderLock
from mlx_gpt.run.listing import list_runs
from mlx_gpt.train.reports import Plan, SaveReport
from mlx_gpt.watch.compare import NotEvaluated, comparison
from mlx_gpt.watch.folders import MAX_DEPTH
from mlx_gpt.watch.metrics import MetricsFile
from mlx_gpt.watch.runs import Runs
from mlx_gpt.watch.tail import CHUNK

ENOUGH = 1 << 30  # bytes


def make_run(folder, count=8, reports=()):
    folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for n in range(1, count + 1):
        metrics.add(step(n, loss=4 - n / 10, rule_lrs={"adamw": 0.003, "muon": 0.02}))
        if n % 4 == 0:
            metrics.add(evaluation(n, loss=4 - n / 20))
    for report in reports:
        metrics.add(report)
    metrics.close()
    (folder / "run.toml").write_text("[train]\niters = 20\nbatch_size = 4\n")
    return folder


def append(folder, *lines):
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def only(*paths):
    runs = Runs(paths)
    runs.refresh(ENOUGH)
    [run] = runs
    return runs, run


def test_the_progress_is_that_of_the_reports(tmp_path):
    runs, run = only(make_run(tmp_path / "a"))
    found = run.summary()
    assert (found["step"], found["iters"], found["loss"], found["val_loss"]) == (8, 20, pytest.approx(3.2), 3.6)
    assert found["best"]["val_loss"] == 3.6 and found["best"]["step"] == 8
    assert found["reason"] is None and found["eta"] == pytest.approx(12 * found["seconds_per_step"])
    append(run.folder, {"report": "plan", "iters": 10, "step": 8}, {"report": "stop", "step": 10, "reason": "iters"})
    runs.refresh(ENOUGH)
    found = run.summary()
    assert (found["step"], found["iters"], found["reason"], found["eta"]) == (10, 10, "iters", None)
    append(run.folder, {"report": "step", "step": 11, "loss": 1.0, "tokens": 2000, "seconds": 1.0})  # resumed
    runs.refresh(ENOUGH)
    assert run.summary()["reason"] is None
    append(run.folder, {"report": "start", "step": 11, "start_loss": 1.0})  # resumed with the length in run.toml
    runs.refresh(ENOUGH)
    assert run.summary()["iters"] == 20
    append(run.folder, {"report": "plan", "iters": 30, "step": 12}, {"report": "stop", "step": 30, "reason": "iters"})
    append(run.folder, {"report": "eval", "step": 30, "val_loss": 3.0}, {"report": "step", "step": 31, "loss": 1.0})
    runs.refresh(ENOUGH)
    assert run.summary()["iters"] == 20


def test_names_states_and_progress_are_known_before_reports_are_read(tmp_path):
    make_run(tmp_path / "long", 900, [stop("iters")])
    runs = Runs([make_run(tmp_path / "a"), tmp_path / "long"])
    runs.refresh(0)
    early = {run.folder.name: run.summary() for run in runs}
    assert [(early[name]["state"], early[name]["step"]) for name in ("a", "long")] == [("killed", 8), ("finished", 900)]
    assert early["a"]["best"]["val_loss"] == 3.6 and early["a"]["unread"] > 0
    runs.refresh(ENOUGH)
    for run in runs:
        late = run.summary()
        names = ("state", "step", "tokens", "elapsed", "loss", "val_loss")
        assert [late[name] for name in names] == [early[run.folder.name][name] for name in names]
        assert late["unread"] == 0 and late["iters"] == 20


def test_a_run_trains_while_its_folder_is_locked(tmp_path):
    """As `mlxgpt runs` says it."""
    runs, run = only(make_run(tmp_path / "a"))
    lock, before = FolderLock(run.folder), run.stamp
    for state in ("training", "killed"):
        runs.refresh(ENOUGH)
        assert run.summary()["state"] == state == list_runs(run.folder)[0].state
        assert run.stamp > before
        before = run.stamp
        lock.release()


def test_files_of_the_first_version_are_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.0, "grad_norm": 0.1, "tokens": 64, "seconds": 1, "elapsed": 1}\n'
        '{"step": 1, "val_loss": 2.0, "val_ppl": 7.4, "val_bits_per_byte": 2.9, "tokens": 64, "elapsed": 1}\n'
    )
    _, run = only(tmp_path)
    assert (run.summary()["loss"], run.summary()["val_loss"], run.summary()["iters"]) == (3.0, 2.0, None)
    assert run.record().facts()["best_loss"] == 2.0


def test_the_runs_that_are_shown_are_read_first(tmp_path):
    for name in "abc":
        make_run(tmp_path / name, 900)
    runs, shown = Runs([tmp_path]), str(tmp_path / "b")
    runs.refresh(0)
    runs.refresh(100_000, [shown])
    assert [bool(len(run.series["step"])) for run in sorted(runs, key=lambda run: run.name)] == [False, True, False]


def test_reading_in_turns_equals_reading_at_once(tmp_path):
    for name in "abc":
        make_run(tmp_path / name, 30)
    whole, parts = Runs([tmp_path]), Runs([tmp_path])
    whole.refresh(ENOUGH)
    while not parts.stamp or any(run.waits for run in parts):
        parts.refresh(500)
    for run in whole:
        other = parts.get(run.name)
        assert other.points()["series"] == run.points()["series"]
        mine, theirs = run.summary(), other.summary()
        assert {k: v for k, v in mine.items() if "stamp" not in k} == {
            k: v for k, v in theirs.items() if "stamp" not in k
        }


def test_a_long_file_delays_the_others_little(tmp_path):
    make_run(tmp_path / "short")
    make_run(tmp_path / "long")
    with open(tmp_path / "long/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 9, "loss": 1.0, "x": "y" * 5000}) + "\n" * (3 * CHUNK))
    os.utime(tmp_path / "short/metrics.jsonl", (1, 1))
    runs = Runs([tmp_path])
    runs.refresh(CHUNK + 30_000)
    assert runs.get(str(tmp_path / "short")).summary()["step"] == 8
    assert runs.get(str(tmp_path / "long")).tail.unread > CHUNK


def test_changes_are_sent_once(tmp_path):
    runs, run = only(make_run(tmp_path / "a"))
    first = run.points()
    assert first["whole"] and run.points(first["stamp"])["series"]["step"]["bins"] == []
    runs.refresh(ENOUGH)
    assert run.stamp == first["stamp"]  # nothing changed
    append(run.folder, {"report": "step", "step": 9, "loss": 1.0, "tokens": 900, "seconds": 1.0, "elapsed": 9.0})
    runs.refresh(ENOUGH)
    change = run.points(first["stamp"])
    assert not change["whole"] and change["series"]["step"]["bins"] == [9] and change["series"]["eval"]["bins"] == []
    make_run(tmp_path / "a", 2)  # replaced
    runs.refresh(ENOUGH)
    change = run.points(change["stamp"])
    assert change["whole"] and change["series"]["step"]["bins"] == [1, 2]


def test_runs_are_found_deleted_and_renamed(tmp_path):
    make_run(tmp_path / "a")
    runs = Runs([tmp_path, tmp_path / "absent"])
    runs.refresh(ENOUGH)
    (tmp_path / "a").rename(tmp_path / "b")
    runs.refresh(ENOUGH)
    old, new = (runs.get(str(tmp_path / name)).summary() for name in "ab")
    assert not old["exists"] and old["state"] == "gone" and "deleted" in old["notes"][0] and old["step"] == 8
    assert new["exists"] and new["step"] == 8
    shutil.rmtree(tmp_path / "b")
    runs.refresh(ENOUGH)
    assert not any(run.summary()["exists"] for run in runs)


def test_nothing_outside_of_the_folders_is_read(tmp_path):
    inside, outside = tmp_path / "runs", make_run(tmp_path / "secret")
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").mkdir()
    (inside / "file/metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    make_run(inside / "own")
    (inside / "own/run.toml").unlink()
    (inside / "own/run.toml").symlink_to(outside / "run.toml")
    make_run(inside / "/".join("d" * (MAX_DEPTH + 1)))
    _, run = only(inside)
    assert run.name == str(inside / "own") and run.settings == {}


def test_damage_and_two_writers_are_told(tmp_path):
    folder = make_run(tmp_path / "a", reports=[SaveReport(step=8, path="x", error="no space left")])
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\n{}}\n")
    append(folder, {"report": "step", "step": 3, "loss": 1.0})
    (folder / "run.toml").write_text("[train")
    notes = " ".join(only(folder)[1].summary()["notes"])
    assert all(word in notes for word in ("2 damaged lines", "steps go back 1 times", "no space left", "run.toml"))


def test_samples_are_kept_in_bounded_memory(tmp_path):
    folder = make_run(tmp_path / "a")
    append(folder, *({"report": "sample", "step": n, "text": f"{n}" * 5000} for n in range(300)))
    _, run = only(folder)
    assert run.samples[-1]["step"] == 299 and len(run.samples) == 100 and len(run.samples[-1]["text"]) == 4000
    assert run.summary()["samples"] == 300


def test_numbers_too_large_for_sums_and_quotients_are_left_out(tmp_path):
    """Each mean, speed and duration is finite, as JSON requires."""
    folder, huge = make_run(tmp_path / "a"), {"report": "step", "loss": 1e308, "grad_norm": 1e308}
    append(folder, *(huge | {"step": 9, "tokens": 10.0**n, "seconds": 5e-324} for n in (3, 90)))
    append(folder, *(huge | {"step": n, "tokens": 1e99, "seconds": 1e308} for n in (10, 10, 11)))
    _, run = only(folder)
    json.dumps([run.summary(), run.points()], allow_nan=False)


@pytest.mark.parametrize("records_alerts", [False, True])
def test_runs_that_record_no_alerts_are_checked(tmp_path, records_alerts):
    fields = {"peak_memory": 1} if records_alerts else {}
    steps = ({"report": "step", "step": 1 + n, "loss": 1.0, "skipped": n} | fields for n in range(9))
    append(make_run(tmp_path / "a", count=0), *steps)
    runs, run = only(tmp_path / "a")
    assert [alert["kind"] for alert in run.alerts] == ["diverging"] * (not records_alerts)
    append(run.folder, {"report": "alert", "step": 9, "since": 4, "kind": "stalled", "evidence": "e", "advice": "a"})
    runs.refresh(ENOUGH)
    assert run.alerts[-1]["kind"] == "stalled" and run.summary()["alerts"] == 1 + (not records_alerts)


def test_a_run_without_evaluations_cannot_be_compared(tmp_path):
    _, run = only(make_run(tmp_path / "a", 3))
    with pytest.raises(NotEvaluated, match="not evaluated"):
        run.record()


def test_runs_are_compared_as_on_the_command_line(tmp_path):
    for name, count in (("a", 8), ("b", 12)):
        make_run(tmp_path / name, count, [Plan(iters=count), stop("iters")])
    (tmp_path / "b/run.toml").write_text("[train]\niters = 20\nbatch_size = 8\n")
    runs = Runs([tmp_path])
    runs.refresh(ENOUGH)
    found = comparison([run.record() for run in runs])
    rows = dict(found["rows"])
    assert rows["train.batch_size"] == ["4", "8"] and found["differing"] == 1
    assert rows["best loss"] == ["3.6000", "3.4000"] and rows["at step"] == ["8", "12"]


def test_random_damage_never_raises(tmp_path):
    draw = random.Random(0)
    folder = make_run(tmp_path / "a", reports=[stop("iters")])
    good, settings = (folder / "metrics.jsonl").read_bytes(), (folder / "run.toml").read_bytes()
    for _ in range(80):
        (folder / "metrics.jsonl").write_bytes(mutated_lines(good, draw))
        (folder / "run.toml").write_bytes(mutated(settings, draw))
        _, run = only(folder)
        json.dumps([run.summary(), run.points(), list(run.alerts)], allow_nan=False)
        try:
            json.dumps(comparison([run.record()] * 2), allow_nan=False)
        except NotEvaluated:
            pass
