"""Processes that train together, over the ring of MLX on the loopback address."""

import json
import signal

import numpy as np
import pytest
from commands import process
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
    assert "finished at iteration 6" in out and (silent, errors) == ("", "")
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("one", "two")))
    ours, theirs = ([line for line in lines(folder / name) if "loss" in line] for name in ("one", "two"))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    evaluations = [[line["val_loss"] for line in lines(folder / n) if "val_loss" in line] for n in ("one", "two")]
    np.testing.assert_allclose(*evaluations, rtol=1e-6)


def test_a_run_whose_process_dies_ends_and_resumes_bit_for_bit(folder):
    """The others end with one line that names the process. Local steps resume with the state of each process."""
    options = ["--iters", 12, "--eval-every", 4, "--set=train.sync_every=2", "--set=speed.lanes=1"]
    with processes(2, *train(*options, "--out=whole"), folder=folder) as started:
        assert [code for code, *_ in ends(started)] == [0, 0]
    with processes(2, *train(*options, "--out=broken"), folder=folder) as started:
        for line in started[0].stdout:
            if "saved" in line:
                started[1].send_signal(signal.SIGKILL)
                break
        code, _, err = ends(started, seconds=30)[0]
    assert code == 8 and started[1].returncode == -signal.SIGKILL
    said = [line for line in err.splitlines() if not line.startswith("[ring]")]
    assert len(said) == 1 and said[0].startswith("error: rank 1 has ended before the end of the run"), err
    assert lines(folder / "broken")[-1]["report"] == "failed"
    assert "rank 1" in lines(folder / "broken")[-1]["error"]
    with processes(2, "train", "--resume", "broken", folder=folder) as started:
        assert [code for code, *_ in ends(started)] == [0, 0]
    assert_equal(*(store.load(folder / name / "checkpoint.safetensors") for name in ("whole", "broken")))
    assert lines(folder / "broken")[-1]["report"] == "stop"
