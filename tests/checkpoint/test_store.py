"""Checkpoints: whole or refused, locks, full disks."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import assert_same, checkpoint

from mlx_gpt import files
from mlx_gpt.checkpoint import store
from mlx_gpt.errors import BadFile, OutOfRoom, ResumeRefused, UserError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "c.safetensors"
    store.save(path, checkpoint())
    return path


@pytest.mark.parametrize("moments", [True, False])
@pytest.mark.parametrize("best", [2.5, float("inf"), 1e-40])
def test_what_is_saved_is_loaded(tmp_path, moments, best):
    before = checkpoint(moments=moments, best_loss=best)
    store.save(tmp_path / "c.safetensors", before)
    assert_same(store.load(tmp_path / "c.safetensors"), before)
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_tensors_of_any_layout_are_saved(tmp_path):
    saved, path = checkpoint(), tmp_path / "c.safetensors"
    turned = {k: np.asfortranarray(w) for k, w in saved.weights.items()}
    store.save(path, dataclasses.replace(saved, weights=turned))
    for name, tensor in store.load(path).weights.items():
        np.testing.assert_array_equal(tensor, saved.weights[name])


def test_equal_checkpoints_are_equal_files(saved):
    """The library alone orders the metadata at random."""
    before = saved.read_bytes()
    for _ in range(20):
        store.save(saved, checkpoint())
        assert saved.read_bytes() == before


def test_any_reader_of_safetensors_sees_the_weights(saved):
    tensors = safetensors.numpy.load_file(saved)
    assert np.array_equal(tensors["layers.0.attn.wq.weight"], checkpoint().weights["layers.0.attn.wq.weight"])
    with safetensors.safe_open(saved, "np") as f:
        assert json.loads(f.metadata()["header"])["config"]["model"]["n_embd"] == 8


def test_every_flipped_byte_is_found(saved):
    whole, draw = saved.read_bytes(), random.Random(0)
    version = whole.index(b"format_version") + len('format_version":"')  # where a flip gives another number
    for place in [version, *range(0, 64), *draw.sample(range(len(whole)), 300)]:
        for flip in (1, 1 << draw.randrange(8), 0xFF):
            saved.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(BadFile):
                store.load(saved)


def test_every_truncation_and_extension_is_found(saved):
    whole = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(BadFile):
            store.load(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(BadFile):
        store.load(saved)


def test_nan_newer_foreign_and_misshapen_files_are_refused(tmp_path, saved):
    def refused(words, path=saved):
        with pytest.raises(BadFile, match=words):
            store.load(path)

    bad = checkpoint()
    bad.weights["wte.weight"][0, 0] = np.nan
    store.save(saved, bad)
    refused("wte.weight holds values that are not finite")
    bad = checkpoint()
    del bad.weights["wpe.weight"]
    store.save(saved, bad)
    refused("wpe.weight is missing")
    bad = checkpoint()
    bad.weights["wte.weight"] = np.zeros((4, 8), np.float32)
    store.save(saved, bad)
    refused(r"wte.weight is F32 \(4, 8\), expected F32 \(5, 8\)")
    bad = checkpoint()
    bad.optimizer["m.stranger"] = np.zeros(1, np.float32)
    store.save(saved, bad)
    refused("stranger does not belong")
    store.save(saved, checkpoint(vocab_size=2**40))
    refused("header can't be read")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, foreign)
    refused("not an mlxgpt checkpoint", foreign)
    safetensors.numpy.save_file(
        {"x": np.zeros(3, np.float32)}, foreign, {"format": "mlxgpt", "format_version": "7", "header": "{}"}
    )
    refused("format version '7'", foreign)
    with pytest.raises(UserError, match="no such file"):
        store.load(tmp_path / "absent")


def signed(path, **changes):
    """Writes a checkpoint whose hash is right and whose header has other values than its types allow."""
    made = checkpoint()
    tensors = made.weights | {store.OPTIMIZER + k: t for k, t in made.optimizer.items()}
    header = json.dumps(json.loads(made.header.to_json()) | changes)
    metadata = {
        "format": "mlxgpt",
        "format_version": str(store.FORMAT_VERSION),
        "header": header,
        "sha256": store.digest(header, tensors),
    }
    safetensors.numpy.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "field, value",
    [
        *(("step", value) for value in ("7", 7.0, True, None, -1, [7])),
        *(("best_loss", value) for value in ("low", None, [1], "5")),
        *(("averaged", value) for value in (1, "true")),
        *(("tokenizer", value) for value in ("char", [], {}, {"kind": 3})),
        ("vocab_size", "5"),
        ("num_updates", -2),
        ("last_eval", -2),
        ("elapsed", "1"),
        ("corpus", 5),
        ("source", [3]),
        ("stranger", 1),
    ],
)
def test_a_header_whose_hash_is_right_is_still_checked_for_its_types(saved, field, value):
    signed(saved)
    store.load(saved)
    signed(saved, **{field: value})
    with pytest.raises(BadFile, match=f"c.safetensors: its header can't be read: .*{field}"):
        store.load(saved)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def broken(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", broken)
    with pytest.raises(OutOfRoom, match="no space left"):
        store.save(saved, checkpoint(seed=1))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_too_little_space_is_known_beforehand(tmp_path):
    with pytest.raises(OutOfRoom, match="MB free"):
        files.require_space(tmp_path, 1 << 60, "the checkpoints", "choose another --out")


def test_a_second_trainer_is_refused_until_the_first_process_ends(tmp_path):
    lock = files.FolderLock(tmp_path)
    code = "import sys; from pathlib import Path; from mlx_gpt.files import FolderLock; FolderLock(Path(sys.argv[1]))"
    second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "another trainer is running" in second.stderr
    with pytest.raises(ResumeRefused):
        files.FolderLock(tmp_path)
    lock.release()
    files.FolderLock(tmp_path).release()
