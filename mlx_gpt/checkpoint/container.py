"""A strict reader of the safetensors container. The header is checked in full before any tensor is read."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_gpt.errors import BadFile

MAX_HEADER = 100_000_000
# Bytes of an element of each type that is read.
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_DIMS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor: its type, its shape, and its bytes [first, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads the header of a file and nothing else.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        BadFile: The file is not what the format allows. The length of the header must be possible, names must be
            distinct, types known and lengths those of the shapes. Tensors must follow each other without gap or
            overlap up to the last byte of the file.
    """

    def bad(what: str) -> BadFile:
        return BadFile(f"{path}: not a complete safetensors file ({what}); use an earlier checkpoint")

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 10:
            raise bad(f"it has {size} bytes")
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise bad(f"its header has {length} bytes, and the file {size}")
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise bad(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("its metadata are not strings")
    entries = {}
    for name, facts in header.items():
        entry = _entry(facts, 8 + length)
        if not entry:
            raise bad(f"{name!r} is not a tensor of {', '.join(WIDTHS)} with a shape and offsets")
        entries[name] = entry
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].end)):
        if entry.first != end:
            raise bad(f"{name!r} begins at byte {entry.first}, expected {end}")
        end = entry.end
    if end != size:
        raise bad(f"its tensors end at byte {end}, and the file at byte {size}")
    return entries, metadata


def read_tensors(path: Path, entries: dict[str, Entry]) -> dict[str, np.ndarray]:
    """The F32, F16 and BF16 tensors that read_header() found, as float32, in order of name."""
    tensors = {}
    with open(path, "rb") as file:
        for name, entry in sorted(entries.items()):
            file.seek(entry.first)
            data = np.fromfile(file, NUMPY[entry.dtype], math.prod(entry.shape))
            if entry.dtype == "BF16":  # the upper half of a float32
                data = (data.astype("<u4") << 16).view("<f4")
            tensors[name] = data.astype(np.float32, copy=False).reshape(entry.shape)
    return tensors


def _entry(facts, start: int) -> Entry | None:
    """An entry of the header, if it is one."""
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS or not _counts(shape) or len(shape) > MAX_DIMS:
        return None
    if not _counts(offsets) or len(offsets) != 2 or math.prod(shape) * WIDTHS[dtype] != offsets[1] - offsets[0]:
        return None
    return Entry(dtype=dtype, shape=tuple(shape), first=start + offsets[0], end=start + offsets[1])


def _counts(values) -> bool:
    """Whether this is a list of whole numbers from 0 to 2^63."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _without_duplicates(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found
