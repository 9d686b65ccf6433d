"""Checkpoints and RGPT files: whole or refused, byte-identical round trips, locks, full disks."""

import dataclasses
import json
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import TINY_SHAPE

from mlx_gpt import files
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.errors import BadFile, OutOfRoom, ResumeRefused, UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.model.gpt import shapes_of

MODEL = ModelConfig(n_embd=8, n_head=2, n_layer=1, block_size=4)


def checkpoint(seed=0, moments=True, **changes) -> Checkpoint:
    draw = np.random.default_rng(seed)

    def tensors():
        return {k: draw.normal(size=s).astype(np.float32) for k, s in shapes_of(MODEL, 5).items()}

    header = Header(
        config=Config(model=MODEL),
        vocab_size=5,
        step=7,
        num_updates=6,
        best_loss=2.5,
        corpus="c" * 64,
        tokenizer={"kind": "char", "characters": "abc"},
    )
    optimizer = {f"{part}.{k}": t for part in "mv" for k, t in tensors().items()} if moments else {}
    return Checkpoint(header=dataclasses.replace(header, **changes), weights=tensors(), optimizer=optimizer)


def assert_same(a: Checkpoint, b: Checkpoint):
    assert a.header == b.header
    for ours, theirs in ((a.weights, b.weights), (a.optimizer, b.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(t, theirs[k]) and t.dtype == theirs[k].dtype for k, t in ours.items())


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "c.safetensors"
    store.save(path, checkpoint())
    return path


# -- our file -------------------------------------------------------------------------------------------------------


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
        {"x": np.zeros(3, np.float32)}, foreign, {"format": "mlxgpt", "format_version": "4", "header": "{}"}
    )
    refused("format version '4'", foreign)
    with pytest.raises(UserError, match="no such file"):
        store.load(tmp_path / "absent")


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


# -- RGPT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", rgpt.MAGIC)
def test_golden_files_go_to_safetensors_and_back_byte_for_byte(vectors, tmp_path, format):
    source = vectors / f"tiny.{format}.bin"
    store.save(tmp_path / "c.safetensors", rgpt.read(source, TINY_SHAPE))
    rgpt.write(tmp_path / "again.bin", store.load(tmp_path / "c.safetensors"), format)
    assert (tmp_path / "again.bin").read_bytes() == source.read_bytes()


def test_golden_headers_and_moments(golden, vectors):
    data, facts = golden
    for format in ("rgpt0001", "rgpt0003"):
        found = rgpt.read(vectors / f"tiny.{format}.bin", TINY_SHAPE)
        assert (found.header.step, found.header.num_updates) == (facts["iter"] + 1, facts["step"])
        assert found.header.best_loss == facts["best_loss"]
        assert np.array_equal(found.weights["layers.0.attn.wq.weight"], data["wq0"])
        assert np.array_equal(found.optimizer["m.layers.0.attn.wq.weight"], data["m_wq0"])
        assert np.array_equal(found.optimizer["v.layers.0.attn.wq.weight"], data["v_wq0"])
    assert not rgpt.read(vectors / "tiny.rgpt0002.bin", TINY_SHAPE).optimizer


def test_a_presets_shape_is_found_from_the_length(vectors):
    header = rgpt.read(vectors / "model-xs.rgpt0002.bin").header
    assert header.config.model.shape() == {"n_embd": 116, "n_head": 4, "n_layer": 3, "block_size": 256}
    assert (header.vocab_size, header.step, header.num_updates, header.best_loss) == (67, 42, 42, 3.25)


@pytest.mark.parametrize("best", [float("inf"), float("nan"), 0.1, -1.5])
@pytest.mark.parametrize("format", rgpt.MAGIC)
def test_any_header_survives_both_ways(tmp_path, format, best):
    shape = MODEL.shape()
    before = checkpoint(best_loss=best, moments=format != "rgpt0002")
    rgpt.write(tmp_path / "a.bin", before, format)
    middle = rgpt.read(tmp_path / "a.bin", shape)
    store.save(tmp_path / "b.safetensors", middle)
    rgpt.write(tmp_path / "c.bin", store.load(tmp_path / "b.safetensors"), format)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "c.bin").read_bytes()
    for name, tensor in before.weights.items():
        assert np.array_equal(tensor, middle.weights[name])


def test_bad_rgpt_files_are_refused_before_anything_is_allocated(vectors, tmp_path):
    whole, path = (vectors / "tiny.rgpt0003.bin").read_bytes(), tmp_path / "bad.bin"

    def refused(content, words, shape=TINY_SHAPE):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            rgpt.read(path, shape)
        assert "\n" not in str(error.value)

    for length in (0, 8, 23, 24, len(whole) - 4, len(whole) - 1):
        refused(whole[:length], "bytes")
    refused(whole + b"\0\0\0\0", "bytes")
    refused(b"RGPT0009" + whole[8:], "begins with")
    refused(whole[:8] + struct.pack("<I", 2**32 - 1) + whole[12:], "vocabulary of 4294967295")
    refused(whole[:8] + struct.pack("<I", 0) + whole[12:], "vocabulary of 0")
    refused(whole[:8] + struct.pack("<I", 68) + whole[12:], "needs")
    refused(whole[:24] + struct.pack("<f", float("nan")) + whole[28:], "wte.weight holds values that are not finite")
    refused(whole, "shapes that match: n_embd=32 n_layer=2 block_size=64", {})
    refused(whole, "--set model.n_head", {k: v for k, v in TINY_SHAPE.items() if k != "n_head"})
    refused(whole, "needs", TINY_SHAPE | {"n_layer": 3})


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    for format in ("rgpt0001", "rgpt0003"):
        with pytest.raises(UserError, match="moments"):
            rgpt.write(tmp_path / "a.bin", checkpoint(moments=False), format)
    with pytest.raises(UserError, match="train it first"):
        rgpt.write(tmp_path / "a.bin", checkpoint(step=0), "rgpt0002")
    with pytest.raises(UserError, match="32 bits"):
        rgpt.write(tmp_path / "a.bin", checkpoint(step=2**32 + 1), "rgpt0002")
    assert not os.listdir(tmp_path)
