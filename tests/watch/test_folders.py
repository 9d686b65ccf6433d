"""The finder of run folders."""

from mlx_gpt.run.listing import list_runs
from mlx_gpt.watch.folders import MAX_DEPTH, find_runs
from mlx_gpt.watch.runs import Runs


def make(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def test_the_list_and_the_dashboard_find_the_same_runs(tmp_path):
    deep = tmp_path / "/".join("abcde"[:MAX_DEPTH])
    made = [make(tmp_path / "pipeline/one", "metrics.jsonl"), make(deep, "run.toml", "metrics.jsonl")]
    make(deep / "deeper", "metrics.jsonl")
    make(tmp_path / ".hidden", "metrics.jsonl")
    (tmp_path / "link").symlink_to(made[0])
    runs = Runs([tmp_path])
    runs.refresh(0)
    assert {run.folder for run in runs} == set(made) == {run.folder for run in list_runs(tmp_path)}


def test_a_folder_is_a_run_if_it_has_a_file_of_a_run(tmp_path):
    only_weights = make(tmp_path / "a", "best.safetensors")
    (tmp_path / "b/run.toml").mkdir(parents=True)
    make(tmp_path / "c", "notes.txt")
    assert list(find_runs(tmp_path)) == [only_weights]
    assert not list(find_runs(tmp_path, marks=("metrics.jsonl",))) and not list(find_runs(tmp_path / "absent"))
