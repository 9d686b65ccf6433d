"""The container of GGUF files: what is written is read, and what is broken is one line, whatever its bytes."""

import struct

import numpy as np
import pytest
from hostile import require_one_line

from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import gguf
from mlx_gpt.formats.gguf import read_header, read_tensor, write

NUMBERS = [np.dtype(name).type for name in gguf.NUMBERS.values()]


def tensors_of(path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        return {name: read_tensor(file, entry) for name, entry in read_header(path)[1].items()}


def test_every_type_of_metadata_comes_back(tmp_path):
    metadata = {f"number.{kind.__name__}": kind(1) for kind in NUMBERS}
    metadata |= {f"array.{kind.__name__}": np.array([0, 1, 1], kind) for kind in NUMBERS}
    metadata |= {"text": "é\n\U0001f600", "empty": "", "strings": ["", "a", "ß"], "none": []}
    write(tmp_path / "a.gguf", metadata, {}, {})
    found, entries = read_header(tmp_path / "a.gguf")
    assert list(found) == list(metadata) and not entries
    for key, value in metadata.items():
        assert np.array_equal(found[key], value) and type(found[key]) is type(value), key
        assert isinstance(value, (str, list)) or found[key].dtype == value.dtype, key


def test_a_file_is_the_bytes_that_the_docstring_shows(tmp_path):
    write(tmp_path / "x.gguf", {}, {"x": np.array([1, 2], np.float32)}, {"x": "F32"})
    data = (tmp_path / "x.gguf").read_bytes()
    info = struct.pack("<Q1sIQIQ", 1, b"x", 1, 2, 0, 0)
    assert data == b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info + bytes(7) + struct.pack("<ff", 1, 2) + bytes(24)
    [entry] = read_header(tmp_path / "x.gguf")[1].values()
    assert (entry.dtype, entry.shape, entry.first, entry.end) == ("F32", (2,), 64, 72)


def test_tensors_come_back_within_the_rounding_of_their_type(tmp_path):
    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in (("a", (3, 64)), ("b", (2, 5, 32)))}
    tensors["zero"] = np.zeros((2, 32), np.float32)
    for kind, step in (("F32", 0), ("F16", 2**-11), ("Q8_0", 0.505 / 127)):
        write(tmp_path / "t.gguf", {}, tensors, dict.fromkeys(tensors, kind))
        for name, found in tensors_of(tmp_path / "t.gguf").items():
            assert found.dtype == np.float32 and found.shape == tensors[name].shape
            assert np.abs(found - tensors[name]).max() <= step * np.abs(tensors[name]).max(), (kind, name)


def test_q8_0_is_ggmls_for_one_block(tmp_path):
    """The scale is the largest magnitude / 127 as float16. Halves are rounded away from zero."""
    x = np.zeros((1, 32), np.float32)
    x[0, :5] = [127, 2.5, -2.5, 0.49, -0.5]
    write(tmp_path / "q.gguf", {}, {"x": x}, {"x": "Q8_0"})
    [entry] = read_header(tmp_path / "q.gguf")[1].values()
    block = (tmp_path / "q.gguf").read_bytes()[entry.first : entry.end]
    assert block == np.float16(1).tobytes() + np.array([127, 3, -3, 0, -1] + [0] * 27, np.int8).tobytes()


@pytest.mark.parametrize("kind, value", [("F16", 1e6), ("Q8_0", 1e8)])
def test_a_value_too_large_for_a_type_is_named_and_nothing_is_written(tmp_path, kind, value):
    with pytest.raises(UserError, match=rf"x has values up to 1e\+0\d, too large for {kind}; choose F32"):
        write(tmp_path / "a.gguf", {}, {"x": np.full((1, 32), value, np.float32)}, {"x": kind})
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    x = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)
    path = raw(tmp_path, infos=[info("x", (4,), 30, 0)], data=(x.view("<u4") >> 16).astype("<u2").tobytes())
    assert np.array_equal(tensors_of(path)["x"], x)


# -- broken files ---------------------------------------------------------------------------------------------------


def text(string: str | bytes) -> bytes:
    data = string if isinstance(string, bytes) else string.encode()
    return struct.pack("<Q", len(data)) + data


def info(name, dims, kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw(folder, version=3, entries=(), infos=(), data=b"", counts=None, magic=b"GGUF"):
    """Writes a file of these parts. `counts` are the numbers of tensors and entries in the header."""
    head = magic + struct.pack("<IQQ", version, *(counts or (len(infos), len(entries)))) + b"".join([*entries, *infos])
    path = folder / "raw.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def number(key, kind=4, value=b"\1\0\0\0") -> bytes:
    return text(key) + struct.pack("<I", kind) + value


HUGE = (1 << 63) - 1
BROKEN = [
    ({"magic": b"GGML"}, "does not begin with GGUF"),
    ({"version": 1}, "GGUF version 1; 2 and 3 are read"),
    ({"version": 4}, "GGUF version 4"),
    ({"version": 3 << 24}, "is a big-endian GGUF file"),
    ({"counts": (HUGE, 0)}, "should have 9,223,372,036,854,775,807 tensors"),
    ({"counts": (0, HUGE)}, "should have 9,223,372,036,854,775,807 metadata entries"),
    ({"entries": [number("a"), number("a")]}, "a key 'a' occurs twice"),
    ({"entries": [number("a\nb")]}, "a key is 'a.{2}b', but it is printable"),
    ({"entries": [number("")]}, "a key is ''"),
    ({"entries": [number("x" * 300)]}, "1 to 256 characters"),
    ({"entries": [number(b"\xff")]}, "a key is not UTF-8 at its byte 0"),
    ({"entries": [number("a", 13)]}, "a has the type 13"),
    ({"entries": [number("a", 9, struct.pack("<IQ", 9, 0))]}, "a has the type 9, .* array of arrays"),
    ({"entries": [number("a", 9, struct.pack("<IQ", 6, HUGE))]}, "a needs 36,893,488,147,419,103,228 bytes"),
    ({"entries": [number("a", 9, struct.pack("<IQ", 8, HUGE))]}, "should have .* strings in a"),
    ({"entries": [number("a", 8, struct.pack("<Q", HUGE))]}, "a needs 9,223,372,036,854,775,807 bytes"),
    ({"entries": [number("a", 7, b"\2")]}, "a is a bool"),
    ({"entries": [number("general.alignment", 4, struct.pack("<I", 24))]}, "general.alignment is 24"),
    ({"entries": [number("general.alignment", 4, struct.pack("<I", 0))]}, "general.alignment is 0"),
    ({"entries": [number("general.alignment", 4, struct.pack("<I", 1 << 20))]}, "general.alignment is 1048576"),
    ({"entries": [number("general.alignment", 8, text("32"))]}, "general.alignment is 32"),
    ({"infos": [info("x", (2,)), info("x", (2,), 0, 32)], "data": bytes(64)}, "a tensor's name 'x' occurs twice"),
    ({"infos": [info("x", ())], "data": bytes(32)}, "x has 0 dimensions"),
    ({"infos": [info("x", (1,) * 5)], "data": bytes(32)}, "x has 5 dimensions"),
    ({"infos": [info("x", (2,), 12)], "data": bytes(32)}, "x has the tensor type Q4_K; F32, F16, Q8_0, BF16 are read"),
    ({"infos": [info("x", (2,), 99)], "data": bytes(32)}, "x has the tensor type number 99"),
    ({"infos": [info("x", (0, 2))], "data": bytes(32)}, r"x has the shape \(2, 0\)"),
    ({"infos": [info("x", (HUGE, HUGE))], "data": bytes(32)}, "x has the shape"),
    ({"infos": [info("x", (1 << 40,))], "data": bytes(32)}, "its tensors end at byte"),
    ({"infos": [info("x", (33,), 8)], "data": bytes(64)}, r"x has the shape \(33,\), which Q8_0 does not allow"),
    ({"infos": [info("x", (2,), 0, 4)], "data": bytes(32)}, "x begins at offset 4"),
    ({"infos": [info("x", (2,), 0, HUGE)], "data": bytes(32)}, "x begins at offset"),
    ({"infos": [info("x", (2,)), info("y", (2,))], "data": bytes(64)}, "y begins at offset 0, but .* ends at 8"),
    ({"infos": [info("x", (2,)), info("y", (2,), 0, 64)], "data": bytes(96)}, "y begins at offset 64"),
    ({"infos": [info("x", (9,))], "data": bytes(32)}, "its tensors end at byte 100, and the file at byte 96"),
    ({"infos": [info("x", (2,))], "data": bytes(64)}, "its tensors end at byte 72, and the file at byte 128"),
]


@pytest.mark.parametrize("parts, words", BROKEN)
def test_a_broken_file_is_named(tmp_path, parts, words):
    path = raw(tmp_path, **parts)
    with pytest.raises(BadFile, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_versions_and_alignments_that_are_read(tmp_path, version, alignment):
    entries = [number("general.alignment", 4, struct.pack("<I", alignment))]
    x = np.arange(2, dtype=np.float32)
    infos = [info("x", (2,)), info("y", (2,), 0, alignment)]
    head = b"GGUF" + struct.pack("<IQQ", version, 2, 1) + b"".join([*entries, *infos])
    pad = bytes(-len(head) % alignment)
    (tmp_path / "a").write_bytes(head + pad + x.tobytes() + bytes(alignment - 8) + (x + 5).tobytes())
    assert {name: t.tolist() for name, t in tensors_of(tmp_path / "a").items()} == {"x": [0, 1], "y": [5, 6]}


def every_type(folder) -> bytes:
    """A good file with metadata and tensors of several types."""
    x = np.ones((2, 32), np.float32)
    metadata = {"text": "abc", "strings": ["a", "b"], "count": np.uint32(3), "counts": np.arange(4, dtype=np.int32)}
    write(folder / "good.gguf", metadata, {"a": x, "b": x, "c": x}, {"a": "F32", "b": "F16", "c": "Q8_0"})
    return (folder / "good.gguf").read_bytes()


def test_mutated_containers_are_refused_in_one_line(tmp_path):
    require_one_line(every_type(tmp_path), tensors_of, tmp_path / "mutated", 400)


@pytest.mark.slow
def test_twenty_thousand_mutated_containers_are_refused_in_one_line(tmp_path):
    require_one_line(every_type(tmp_path), tensors_of, tmp_path / "mutated", 20_000)
