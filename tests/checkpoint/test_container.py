"""The safetensors check: what the library writes is read, what is broken is named, whatever its bytes."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from mlx_gpt.checkpoint import container
from mlx_gpt.checkpoint.container import read_header, read_tensors
from mlx_gpt.errors import BadFile


def tensors():
    draw = np.random.default_rng(0)
    return {
        "b": draw.normal(size=(3, 4)).astype(np.float32),
        "a.c": draw.normal(size=5).astype(np.float16),
        "e": np.zeros((0, 2), np.float32),
    }


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_the_library_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors(), path, {"format": "pt"})
    entries, metadata = read_header(path)
    assert metadata == {"format": "pt"} and entries.keys() == tensors().keys()
    found = read_tensors(path, entries)
    for name, tensor in tensors().items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], tensor.astype(np.float32)), name


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    x = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)
    path = write(
        tmp_path / "b",
        {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}},
        (x.view("<u4") >> 16).astype("<u2").tobytes(),
    )
    assert np.array_equal(read_tensors(path, read_header(path)[0])["x"], x)


def one(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}}


BAD = [
    ({}, b"tail", "end at byte 10, and the file at byte 14"),
    (b"[]", b"", "not a JSON object"),
    (b"{   ", b"", "not JSON"),
    (b'{"a": 1, "a": 2}', b"", "twice"),
    (b"\xff\xff", b"", "not JSON"),
    (b"[" * 5000, b"", "not JSON"),
    ({"__metadata__": {"a": 3}}, b"", "metadata"),
    ({"__metadata__": []}, b"", "metadata"),
    ({"x": 3}, b"", "'x' is not a tensor"),
    (one(dtype="F64"), b"0" * 8, "'x' is not a tensor"),
    (one(dtype=["F32"]), b"0" * 8, "'x' is not a tensor"),
    (one(more=1), b"0" * 8, "'x' is not a tensor"),
    (one(shape=(3,)), b"0" * 8, "'x' is not a tensor"),
    (one(shape=(-2,)), b"0" * 8, "'x' is not a tensor"),
    (one(shape=(True, 2)), b"0" * 8, "'x' is not a tensor"),
    (one(shape=(2.0,)), b"0" * 8, "'x' is not a tensor"),
    (one(shape=[1] * 9 + [2]), b"0" * 8, "'x' is not a tensor"),
    (one(shape=(2**62, 2**62, 0), offsets=(0, 0)), b"0", "end at byte"),
    (one(offsets=(8, 0)), b"0" * 8, "'x' is not a tensor"),
    ({"a\nb": one()["x"]}, b"0" * 8, "'a.{2}b', but a name is printable"),
    ({"x" * 300: one()["x"]}, b"0" * 8, "at most 256 characters"),
    ({"__metadata__": {"a": "\ud800"}}, b"", "lone surrogate"),
    (one(offsets=(4, 12)), b"0" * 12, "'x' begins at byte"),
    (one(offsets=(0, 8)), b"0" * 7, "end at byte"),
    (one() | {"y": one(offsets=(4, 12))["x"]}, b"0" * 12, "'y' begins at byte"),
    (one() | {"y": one(offsets=(12, 20))["x"]}, b"0" * 20, "'y' begins at byte"),
]


@pytest.mark.parametrize("header, data, words", BAD)
def test_a_broken_container_is_named(tmp_path, header, data, words):
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(BadFile, match=words):
        read_header(path)


@pytest.mark.parametrize("data", [b"", b"123456789", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_a_length_that_can_not_be_is_refused_before_anything_is_read(tmp_path, data):
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(BadFile, match="not a complete safetensors file"):
        read_header(tmp_path / "bad")


def test_the_types_are_those_we_write_and_read():
    assert container.WIDTHS.keys() >= container.NUMPY.keys()
    assert all(np.dtype(kind).itemsize == container.WIDTHS[name] for name, kind in container.NUMPY.items())
