"""Processes that train together, over the ring of MLX on the loopback address."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import mlxgpt, process
from constants import ROOT
from crew import ends, processes

from mlx_gpt.checkpoint import store

TEXT = "".join(f"{i} times {i + 1} is {i * (i + 1)}\n" for i in range(400))
SMALL = ["--corpus", "text.txt", "--sample-every", "0", "--batch", "4"]
SMALL += [f"--set={key}={value}" for key, value in {
    "model.n_embd": 32, "model.n_head": 2, "model.n_layer": 2, "model.block_size": 32, "model.dropout": 0.1,
    "train.save_minutes": 0, "optimizer.warmup_steps": 2,
}.items()]  # fmt: skip


def train(*options):
    return ["train", *SMALL, *options]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal(ours, theirs):
    """Asserts that two checkpoints have equal weights and optimizer tensors, bit for bit."""
    for a, b in ((ours.weights, theirs.weights), (ours.optimizer, theirs.optimizer)):
        assert a.keys() == b.keys()
        assert all(np.array_equal(t, b[name]) for name, t in a.items())


def test_two_processes_of_one_lane_train_as_one_process_of_two_lanes(folder):
    """Weights, optimizer and losses are equal, bit for bit, and only the first process says anything."""
    options = ["--iters", 6, "--eval-every", 3]
    one = process(*train(*options, "--set=speed.lanes=2", "--out=one"), cwd=folder, env={"MLX_DISABLE_COMPILE": "1"})
    with processes(2, *train(*options, "--set=speed.lanes=1", "--out=two"), folder=folder) as started:
        (first, out, err), (second, silent, errors) = ends(started)
    assert (first, second, ends([one])[0][0]) == (0, 0, 0), err + errors
    assert "finished at step 6" in out and (silent, errors) == ("", "")
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("one", "two")))
    ours, theirs = ([line for line in lines(folder / name) if "loss" in line] for name in ("one", "two"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    evaluations = [[line["val_loss"] for line in lines(folder / n) if "val_loss" in line] for n in ("one", "two")]
    np.testing.assert_allclose(*evaluations, rtol=1e-6)


def ends_with_8(started, line, seconds=30):
    """Asserts that a process ends with exit code 8 and one line that begins with `line`, beside those of MLX."""
    [(code, _, err)] = ends([started], seconds)
    said = [text for text in err.splitlines() if not text.startswith("[ring]")]
    assert code == 8 and len(said) == 1 and said[0].startswith(line), (code, err)


def until_saved(process):
    """Reads the output of a process until it has saved a checkpoint."""
    assert any("saved" in line for line in process.stdout)


def test_a_run_whose_process_dies_ends_and_continues_in_one_process(folder):
    """The other process ends with one line that names the one that died, and so does metrics.jsonl."""
    options = ["--iters", 12, "--eval-every", 4, "--set=speed.lanes=1"]
    with processes(2, *train(*options, "--out=run"), folder=folder) as started:
        until_saved(started[0])
        started[1].kill()
        ends_with_8(started[0], "error: rank 1 has ended before the end of the run")
    assert lines(folder / "run")[-1]["report"] == "failure" and "rank 1" in lines(folder / "run")[-1]["message"]
    assert store.load(folder / "run/best.safetensors").header.step in (4, 8)
    assert mlxgpt("train", "--resume", "run", cwd=folder).returncode == 0
    assert lines(folder / "run")[-1]["report"] == "stop" and lines(folder / "run")[-1]["step"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_hangs_ends_the_others(folder, stopped):
    with processes(2, *train("--iters", 9999, "--eval-every", 4, "--out=run"), folder=folder) as started:
        until_saved(started[0])
        started[stopped].send_signal(signal.SIGSTOP)
        where = "" if stopped else " on rank 1"
        ends_with_8(started[1 - stopped], f"error{where}: rank {stopped} has not answered for 20 s")
        started[stopped].send_signal(signal.SIGCONT)
        assert ends([started[stopped]])[0][0] == 8


@pytest.mark.slow
def test_local_steps_of_processes_resume_bit_for_bit(folder):
    """Each process continues with its own optimizer state."""
    options = ["--iters", 12, "--eval-every", 4, "--set=speed.lanes=1"]
    options += ["--set=train.sync_every=2"]
    with processes(2, *train(*options, "--out=whole"), folder=folder) as started:
        assert [code for code, *_ in ends(started)] == [0, 0]
    with processes(2, *train(*options, "--out=broken"), folder=folder) as started:
        until_saved(started[0])
        started[1].kill()
        ends_with_8(started[0], "error: rank 1 has ended")
    with processes(2, "train", "--resume", "broken", folder=folder) as started:
        assert [code for code, *_ in ends(started)] == [0, 0]
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("whole", "broken")))


OUTER = ["--set=optimizer.outer_learning_rate=0.7", "--set=optimizer.outer_momentum=0.9"]
LOCAL = ["--set=speed.lanes=1", "--set=train.sync_every=2", *OUTER, "--eval-every", 4]


def until_said(process, pattern):
    """Reads the errors of a process until a line matches. Returns the match."""
    return next(match for line in process.stderr if (match := re.search(pattern, line)))


def codes_of(started):
    found = ends(started)
    return [code for code, *_ in found], "".join(err for *_, err in found)


@pytest.mark.slow
def test_ranks_that_remain_go_on_as_a_run_of_so_many_ranks_resumed_at_the_same_exchange(folder, monkeypatch):
    """They end at the planned number of updates. No temporary file is left."""
    monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
    (folder / "temporary").mkdir()
    options = [*LOCAL[:2], "--iters=12", "--eval-every=12", "--set=train.log_every=1", "--set=train.min_ranks=2"]
    with processes(3, *train(*options, "--out=run"), folder=folder) as started:
        assert any("Iter    3" in line for line in started[0].stdout)  # nothing is saved until then
        started[2].kill()
        until_said(started[0], "^rank 2 has ended before the end of the run; the run continues with 2 ranks")
        shutil.copytree(folder / "run", folder / "copy", ignore=shutil.ignore_patterns("*.tmp-*"))
        codes, said = codes_of(started)
    assert codes == [0, 0, -signal.SIGKILL], said
    assert not list((folder / "temporary").glob("mlxgpt-*")) and not list((folder / "run").glob("*.tmp-*"))
    reports = lines(folder / "run")
    assert [line["step"] for line in reports if line["report"] == "step"] == list(range(1, 13))
    assert [line["error"] for line in reports if line["report"] == "failure"] == ["GroupChanged"]
    assert (reports[-1]["reason"], reports[-1]["step"]) == ("iters", 12)
    with processes(2, "train", "--resume", "copy", folder=folder) as resumed:
        assert codes_of(resumed)[0] == [0, 0]
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("run", "copy")))


@pytest.mark.slow
def test_a_second_loss_leaves_one_rank_and_with_more_min_ranks_ends_the_run(folder):
    options = train(*LOCAL, "--iters=9999", "--out=run")
    with processes(3, *options, "--set=train.min_ranks=2", folder=folder) as started:
        until_saved(started[0])
        started[1].kill()
        until_said(started[0], "^rank 1 has ended .*; the run continues with 2 ranks")
        assert any("resuming at" in line for line in started[0].stdout)
        started[2].kill()
        code, _, said = ends([started[0]])[0]
        assert code == 8 and "error: rank 1 has ended before the end of the run; the run has ended" in said
    resume = ["train", "--resume", "run", "--iters", lines(folder / "run")[-1]["step"] + 8, "--set=train.min_ranks=1"]
    with processes(2, *resume, folder=folder) as started:
        assert any("Iter" in line or "eval" in line for line in started[0].stdout)
        started[1].kill()
        codes, said = codes_of(started)
    assert codes == [0, -signal.SIGKILL] and "the run continues with this process alone" in said
    assert lines(folder / "run")[-1]["reason"] == "iters"


@pytest.mark.slow
def test_the_loss_of_rank_0_ends_the_run(folder):
    with processes(2, *train(*LOCAL, "--iters=9999", "--out=run", "--set=train.min_ranks=1"), folder=folder) as started:
        until_saved(started[0])
        started[0].kill()
        ends_with_8(started[1], "error on rank 1: rank 0 has ended before the end of the run")


def joining(first, cwd):
    """Starts a process that joins the run of rank 0. Rank 0 is suspended until the other one waits."""
    address = until_said(first, "join with: mlxgpt train --join (.*)")[1]
    first.send_signal(signal.SIGSTOP)
    newcomer = process("train", "--join", address, cwd=cwd, env={"MLX_DISABLE_COMPILE": "1"})
    until_said(newcomer, "^waiting for an exchange")
    first.send_signal(signal.SIGCONT)
    return newcomer


@pytest.mark.slow
def test_a_process_that_joins_takes_its_share_as_in_a_run_resumed_with_one_rank_more(folder):
    options = train(*LOCAL, "--iters=40", "--out=run", "--set=train.min_ranks=1")
    with processes(1, *options, folder=folder) as started:
        started.append(joining(started[0], folder))
        until_said(started[0], "^processes that join: 1; the run continues with 2 ranks")
        shutil.copytree(folder / "run", folder / "copy")
        codes, said = codes_of(started)
    assert codes == [0, 0], said
    reasons = [line["reason"] for line in lines(folder / "run") if line["report"] == "stop"]
    assert reasons[-1] == "iters"
    assert [line["step"] for line in lines(folder / "run") if line["report"] == "step"] == list(range(1, 41))
    with processes(2, "train", "--resume", "copy", folder=folder) as resumed:
        assert codes_of(resumed)[0] == [0, 0]
    ours, theirs = (store.load(folder / name / "checkpoint.safetensors") for name in ("run", "copy"))
    assert any("@1." in name for name in ours.optimizer)
    assert_equal(ours, theirs)


@pytest.mark.slow
def test_a_run_goes_on_without_a_process_that_joins_with_another_text(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/text.txt").write_text("another text\n" * 400)
    with processes(1, *train(*LOCAL, "--iters=9999", "--out=run", "--set=train.min_ranks=1"), folder=folder) as started:
        started.append(joining(started[0], folder / "elsewhere"))
        until_said(started[0], "^rank 1 has ended before .*; the run continues with this process alone")
        assert any("resuming at" in line for line in started[0].stdout)
        until_saved(started[0])
        started[0].terminate()
        codes, said = codes_of(started)
    assert codes == [143, 4] and "is another text than on rank 0" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_process_stops_and_saves_the_run(folder, rank):
    """A run that one process began continues in three, of which only the first needs the folder."""
    assert mlxgpt(*train("--iters", 2, "--out=run"), cwd=folder).returncode == 0
    resume = ["train", "--resume", "run", "--iters", 9999, "--set=train.log_every=1"]
    with processes(3, *resume, folder=folder) as started:
        assert any("Iter    5" in line for line in started[0].stdout)
        started[rank].send_signal(signal.SIGTERM)
        assert [code for code, *_ in ends(started)] == [143] * 3
    assert lines(folder / "run")[-1]["reason"] == "signal"
    assert store.load(folder / "run/checkpoint.safetensors").header.step >= 5


@pytest.mark.slow
def test_processes_with_another_text_or_too_few_rows_end_with_the_reason(folder):
    (folder / "text.txt").unlink()
    with processes(2, *train("--out=run"), folder=folder) as started:
        codes, errors = zip(*((code, err) for code, _, err in ends(started)), strict=True)
    assert codes == (2, 8) and "text.txt" in errors[0] and "error on rank 1: " in errors[1]
    (folder / "text.txt").write_text(TEXT)
    with processes(5, *train("--out=run"), folder=folder) as started:
        found = ends(started)
    assert [code for code, *_ in found] == [2] * 5
    assert "an update has 4 sequences, but 5 processes divide them" in found[0][2]


HASTY = """
from mlx_gpt.cli.main import main
from mlx_gpt.distributed import ranks
ranks.JOIN_SECONDS = 0.5
main()
"""


@pytest.mark.slow
def test_a_process_does_not_wait_without_end_for_one_that_died_before_it_connected(folder):
    (folder / "hasty.py").write_text(HASTY)
    with processes(2, *train("--out=run"), folder=folder, module="hasty") as started:
        started[1].kill()
        ends_with_8(started[0], "error: the processes of the run cannot reach each other: a rank has not connected", 60)


SMALL_PIECES = """
import functools
from mlx_gpt.cli.main import main
from mlx_gpt.distributed import ranks
ranks.buckets = functools.partial(ranks.buckets, size=10_000)
main()
"""


@pytest.mark.slow
def test_the_size_of_the_pieces_that_are_summed_changes_nothing(folder):
    options = train("--iters", 6, "--eval-every", 3, "--set=speed.lanes=1")
    (folder / "pieces.py").write_text(SMALL_PIECES)
    for name, module in (("whole", "mlx_gpt"), ("pieces", "pieces")):
        with processes(2, *options, f"--out={name}", folder=folder, module=module) as started:
            assert [code for code, *_ in ends(started)] == [0, 0]
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("whole", "pieces")))


@pytest.mark.slow
def test_mlx_launch_starts_a_run(folder):
    """The steps are compiled here. mlx.launch returns 0 whatever happens, so the folder tells how the run has ended."""
    launch = Path(sys.executable).with_name("mlx.launch")
    if not launch.exists():
        pytest.skip("needs mlx.launch beside the interpreter")
    command = [launch, "--backend", "ring", "-n", "2", "--", sys.executable, "-m", "mlx_gpt"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for options, reason in ((train("--iters", 3, "--out=good"), "iters"), (train("--lr", 9, "--out=bad"), "diverged")):
        text = list(map(str, command + options))
        done = subprocess.run(text, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        assert lines(folder / options[-1].removeprefix("--out="))[-1]["reason"] == reason, done
