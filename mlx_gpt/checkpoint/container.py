"""Safetensors files: a writer, and a strict reader that checks the whole header before it reads a tensor.

A safetensors file consists of the length of its header (u64, little-endian), the header (JSON) and the tensors' bytes.
The header maps each tensor's name to {"dtype", "shape", "data_offsets"}, and "__metadata__" to a map of strings. The
offsets count from the end of the header.

Example: a file has one float32 tensor "x" of shape (2,). It consists of the number 54 in 8 bytes, the 54 bytes of the
header {"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}, and the 8 bytes of the tensor. read_header() returns
{"x": Entry(dtype="F32", shape=(2,), first=62, end=70)} and no metadata.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy

from mlx_gpt.errors import BadFile
from mlx_gpt.parse import parse_json, reading

MAX_HEADER = 100_000_000  # bytes
# Bytes per element of each dtype that a header may contain.
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
# NumPy types of the dtypes that read_tensors() can read. NumPy has no bfloat16, so its bits are read as integers.
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
MAX_DIMS = 8
MAX_NAME = 256  # characters of a tensor's name


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor: its dtype, its shape, and the range [first, end) of its bytes, counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads and checks the header of a file. Does not read the tensors.

    Args:
        path: An existing safetensors file.

    Returns:
        The entries of the tensors by name, and the metadata.

    Raises:
        BadFile: The file cannot be read, or is not a valid safetensors file. The checks are: the header fits into the
            file, is a JSON object and has no name twice; every dtype is one of WIDTHS; the byte length of every tensor
            is that of its shape and dtype; the tensors follow each other without gap or overlap, up to the last byte
            of the file.
    """

    def bad(what: str) -> BadFile:
        return BadFile(f"{path}: not a complete safetensors file ({what}); use an earlier checkpoint")

    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 10:  # the length of the header, 8 bytes, and the shortest header, "{}"
            raise bad(f"it has {size} bytes")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise bad(f"its header should have {length} bytes, but the file has {size}")
        text = file.read(length)
    try:
        header = parse_json(text, "header")
    except BadFile as error:
        raise bad(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("its metadata are not strings")
    entries = {}
    for name, facts in header.items():
        if not name.isprintable() or len(name) > MAX_NAME:
            raise bad(
                f"a tensor's name is {name[:60]!r}, but a name is printable and has at most {MAX_NAME} characters"
            )
        entry = _entry(facts, 8 + length)
        if not entry:
            raise bad(f"{name!r} is not a tensor of dtype {', '.join(WIDTHS)} with a shape and offsets that match it")
        entries[name] = entry
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].end)):
        if entry.first != end:
            raise bad(f"{name!r} begins at byte {entry.first}, but what precedes it ends at byte {end}")
        end = entry.end
    if end != size:
        raise bad(f"its tensors end at byte {end}, and the file at byte {size}")
    return entries, metadata


def serialized(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> list[bytes | memoryview]:
    """Returns the content of a file, in parts. Equal arguments give equal bytes.

    The library writes the metadata in a random order. Here they are in the order of `metadata`.
    """
    data = memoryview(safetensors.numpy.save(tensors, metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = parse_json(bytes(data[8:end]), "header")
    text = json.dumps(header | {"__metadata__": metadata}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return [len(text).to_bytes(8, "little") + text, data[end:]]


def read_tensors(path: Path, entries: dict[str, Entry]) -> dict[str, np.ndarray]:
    """Reads tensors and converts those of floating-point numbers to float32.

    Args:
        path: The file.
        entries: Entries that read_header() returned. Their dtypes must be keys of NUMPY: F32, F16, BF16 or U8.

    Returns:
        The arrays by name, in the order of the names.

    Raises:
        BadFile: The file cannot be read, or ends before the last tensor.
    """
    tensors = {}
    with reading(path) as file:
        for name, entry in sorted(entries.items()):
            file.seek(entry.first)
            data = read_array(file, NUMPY[entry.dtype], math.prod(entry.shape))
            if entry.dtype == "BF16":  # a bfloat16 is the upper 16 bits of a float32: 0x3F80 is 0x3F800000, 1.0
                data = (data.astype("<u4") << 16).view("<f4")
            dtype = np.uint8 if entry.dtype == "U8" else np.float32
            tensors[name] = data.astype(dtype, copy=False).reshape(entry.shape)
    return tensors


def read_array(file: BinaryIO, dtype: np.dtype | str | type, count: int) -> np.ndarray:
    """Reads an array of `count` elements from the position of a file. Raises BadFile if the file ends before."""
    data = np.empty(count, dtype)
    if file.readinto(data.view("u1")) < data.nbytes:
        raise BadFile(f"{file.name}: has become shorter while it was read; another program changes it, try again")
    return data


def _entry(facts, start: int) -> Entry | None:
    """Converts the JSON value of one name in the header to an Entry. Returns None if the value is not valid.

    `start` is the first byte after the header, from which the offsets count.
    """
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS or not _counts(shape) or len(shape) > MAX_DIMS:
        return None
    if not _counts(offsets) or len(offsets) != 2 or math.prod(shape) * WIDTHS[dtype] != offsets[1] - offsets[0]:
        return None
    return Entry(dtype=dtype, shape=tuple(shape), first=start + offsets[0], end=start + offsets[1])


def _counts(values) -> bool:
    """Whether `values` is a list of whole numbers of at least 0 and less than 2^63."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
