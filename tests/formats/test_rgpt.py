"""RGPT files: byte-identical round trips, shapes from lengths, refusals."""

import os
import struct

import numpy as np
import pytest
from checkpoints import MODEL, checkpoint
from constants import TINY_SHAPE

from mlx_gpt.checkpoint import store
from mlx_gpt.config.presets import names_of, resolve
from mlx_gpt.errors import UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.model.cost import num_params


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


RANDYGPTS = [name for name in names_of("presets") if not resolve(name).model.extensions()]


@pytest.mark.parametrize("preset", RANDYGPTS)
def test_a_file_of_every_network_of_randygpt_is_found_from_its_length(tmp_path, preset):
    """With its number of heads, which presets of other networks of the same width do not share."""
    model = resolve(preset).model
    with open(tmp_path / "old.bin", "wb") as file:
        file.write(struct.pack("<8sIIIf", b"RGPT0001", 67, 9, 10, 2.5))
        file.truncate(24 + 12 * num_params(model, 67))
    assert rgpt.read(tmp_path / "old.bin").header.config.model.architecture() == model.architecture()


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
