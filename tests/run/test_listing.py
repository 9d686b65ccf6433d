"""The list of runs, and what is deleted of them."""

import json
import os

import pytest

from mlx_gpt.errors import ResumeRefused, UserError
from mlx_gpt.files import FolderLock, is_locked
from mlx_gpt.run.cleaning import DAY, delete, plan_cleaning
from mlx_gpt.run.listing import list_runs

BOTH = ("checkpoint.safetensors", "best.safetensors")
NOW = 2e9


def make_run(folder, *reports, days=1.0, checkpoints=BOTH, others=()):
    """Makes a run folder that changed so many days before NOW."""
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text("[train]\niters = 40\n")
    lines = [{"report": "step", "step": 20, "tokens": 200, "elapsed": 2.5}]
    lines += [
        {"report": "eval", "step": 20, "val_loss": loss, "tokens": 200, "elapsed": 3.0} for loss in (2.5, 2.0, 2.25)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *reports]))
    for name in (*checkpoints, *others):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)
    for path in folder.rglob("*"):
        os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return folder


def stop(reason):
    return {"report": "stop", "step": 40, "reason": reason, "tokens": 400, "elapsed": 6.0}


def names(found):
    return [run.folder.name for run in found]


def planned(folder, **options):
    return [(d.run.folder.name, d.whole, sorted(p.name for p in d.paths)) for d in clean(folder, **options)]


def clean(folder, **options):
    return list(plan_cleaning(list_runs(folder), NOW, **options))


@pytest.mark.parametrize(
    "reports, state",
    [
        ([stop("iters")], "finished"),
        ([stop("minutes")], "finished"),
        ([stop("patience")], "finished"),
        ([stop("signal")], "stopped"),
        ([stop("diverged")], "diverged"),
        ([{"report": "failure", "step": 30, "error": "OutOfRoom", "message": "out of memory"}], "failed"),
        ([], "killed"),
        ([stop("signal"), {"report": "start", "step": 40}], "killed"),
    ],
)
def test_the_state_of_a_run_is_that_of_its_last_process(tmp_path, reports, state):
    make_run(tmp_path / "run", *reports)
    (found,) = list_runs(tmp_path)
    assert found.state == state
    lock = FolderLock(tmp_path / "run")
    assert list_runs(tmp_path)[0].state == "training"
    lock.release()
    assert list_runs(tmp_path)[0].state == state


def test_the_facts_are_those_of_the_files(tmp_path):
    make_run(tmp_path / "run", {"report": "alert", "kind": "plateau", "step": 30}, stop("iters"))
    (found,) = list_runs(tmp_path / "run")  # the folder of a run is listed itself
    assert (found.step, found.iters, found.best_loss, found.tokens, found.seconds) == (40, 40, 2.0, 400, 6.0)
    assert found.changed == NOW - DAY and found.checkpoints == BOTH and found.alerts == ("plateau",)
    assert found.num_bytes == sum(path.stat().st_size for path in (tmp_path / "run").iterdir())


def test_the_runs_that_changed_last_come_first_and_those_of_a_pipeline_are_found(tmp_path):
    for number, days in enumerate((3, 1, 2)):
        make_run(tmp_path / f"run-{number}", days=days)
    make_run(tmp_path / "pipeline/1-train", days=4)
    (tmp_path / "notes").mkdir()
    assert names(list_runs(tmp_path)) == ["run-1", "run-2", "run-0", "1-train"]
    with pytest.raises(UserError, match="absent: no such folder"):
        list_runs(tmp_path / "absent")


@pytest.mark.parametrize("text", [b"\xff\xfe", b"[1]\n5\n", b'{"step": "x", "report": 3}', b'{"report": "stop"}\n{"re'])
def test_damaged_files_are_listed_with_what_they_tell(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_bytes(text)
    (run / "run.toml").write_bytes(text)
    (found,) = list_runs(tmp_path)
    assert found.best_loss is None and found.iters is None and found.checkpoints == BOTH


def test_files_of_version_0_1_do_not_tell_how_a_run_ended(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 4, "loss": 3, "grad_norm": 1}\n{"step": 4, "val_loss": 2.5}\n')
    (found,) = list_runs(tmp_path)
    assert (found.state, found.step, found.best_loss) == ("unknown", 4, 2.5)


def test_only_runs_without_a_checkpoint_are_deleted_unless_more_is_asked_for(tmp_path):
    make_run(tmp_path / "good", stop("iters"), others=["tensorboard/events"])
    make_run(tmp_path / "empty", checkpoints=(), others=["tensorboard/events", ".lock"])
    (deletion,) = clean(tmp_path)
    assert deletion.run.folder.name == "empty" and deletion.num_bytes > 100
    assert delete(deletion) and sorted(os.listdir(tmp_path)) == ["good"] and clean(tmp_path) == []
    assert len(list((tmp_path / "good").rglob("*"))) == 6


def test_the_newest_runs_are_kept_and_both_limits_count(tmp_path):
    for days in (1, 5, 9, 20):
        make_run(tmp_path / f"{days}", stop("iters"), days=days)
    assert [name for name, *_ in planned(tmp_path, keep=2)] == ["9", "20"]
    assert [name for name, *_ in planned(tmp_path, days=7)] == ["9", "20"]
    assert [name for name, *_ in planned(tmp_path, keep=3, days=2)] == ["20"]
    assert planned(tmp_path, keep=4) == planned(tmp_path, days=30) == []


def test_checkpoints_that_only_continue_a_finished_run_can_be_deleted(tmp_path):
    make_run(tmp_path / "finished", stop("iters"), others=["reference.safetensors"])
    make_run(tmp_path / "stopped", stop("signal"))
    make_run(tmp_path / "single", stop("iters"), checkpoints=BOTH[:1])
    ((name, whole, paths),) = planned(tmp_path, checkpoints=True)
    assert (name, whole, paths) == ("finished", False, ["checkpoint.safetensors", "reference.safetensors"])
    (deletion,) = clean(tmp_path, checkpoints=True)
    assert not delete(deletion) and (tmp_path / "finished/best.safetensors").exists()


def test_files_of_killed_processes_are_deleted(tmp_path):
    dead, alive = f".best.safetensors.tmp-{(1 << 31) - 1}", f".best.safetensors.tmp-{os.getpid()}"
    make_run(tmp_path / "run", others=[dead, alive])
    assert planned(tmp_path) == [("run", False, [dead])]


def test_a_run_that_trains_is_never_deleted(tmp_path):
    make_run(tmp_path / "new", checkpoints=())
    make_run(tmp_path / "old", days=99)
    (deletion, _) = clean(tmp_path, days=7)
    locks = [FolderLock(tmp_path / name) for name in ("new", "old")]
    assert is_locked(tmp_path / "new") and clean(tmp_path, keep=0, days=7, checkpoints=True) == []
    with pytest.raises(ResumeRefused, match="another trainer"):  # it began after the plan was made
        delete(deletion)
    assert (tmp_path / "new/metrics.jsonl").exists()
    for lock in locks:
        lock.release()


def test_nothing_outside_the_folder_is_deleted_and_no_link_is_followed(tmp_path):
    outside = make_run(tmp_path / "outside", checkpoints=())
    inside = make_run(tmp_path / "runs/run", checkpoints=(), others=["notes.txt"])
    (tmp_path / "runs/link").symlink_to(outside)
    (inside / "vocab.json").symlink_to(outside / "metrics.jsonl")
    (inside / "wandb").symlink_to(outside)
    (inside / "tensorboard").mkdir()
    (inside / "tensorboard/link").symlink_to(outside)
    (deletion,) = clean(tmp_path / "runs")
    assert not delete(deletion)
    assert sorted(os.listdir(inside)) == [".lock", "notes.txt", "wandb"]
    assert sorted(os.listdir(outside)) == ["metrics.jsonl", "run.toml"]


def test_a_folder_that_became_a_link_is_left_as_it_is(tmp_path):
    run, outside = make_run(tmp_path / "runs/run", checkpoints=()), make_run(tmp_path / "outside")
    (deletion,) = clean(tmp_path / "runs")
    run.rename(tmp_path / "moved")
    run.symlink_to(outside)
    with pytest.raises(UserError, match="is a link by now"):
        delete(deletion)
    assert (outside / "metrics.jsonl").exists()
