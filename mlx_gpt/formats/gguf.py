"""GGUF files, the container of llama.cpp: metadata with types, and tensors that may be quantized.

    type    field
    bytes   magic, "GGUF"
    u32     version, 2 or 3
    u64     number of tensors
    u64     number of metadata entries
            the entries: key (string), type of the value (u32), value
            the tensors' infos: name (string), number of dimensions (u32), dimensions (u64 each, innermost first),
            type (u32), offset (u64)
            zeros up to a multiple of the alignment
            the tensors' bytes, each padded with zeros to a multiple of the alignment

All numbers are little-endian. A string is its length (u64) and its UTF-8 bytes. An array is the type of its elements
(u32), their number (u64), and the elements. Offsets count from the end of the padded header. Source: the page
docs/gguf.md of ggml.

Metadata in memory is a dict from key to value. The type of the value tells the type in the file: a NumPy scalar for a
number, bool, str, a NumPy array for an array of numbers, and a list of str for an array of strings.

Example: the float32 tensor "x" of shape (2,) without metadata is a file of 96 bytes: 24 bytes up to the two numbers,
33 bytes of info, 7 zeros, the 8 bytes of the tensor, and 24 zeros. read_header() returns no metadata and
{"x": Entry(dtype="F32", shape=(2,), first=64, end=72)}.
"""

import functools
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_gpt.checkpoint.container import MAX_HEADER, MAX_NAME, Entry
from mlx_gpt.errors import BadFile
from mlx_gpt.files import write_atomic
from mlx_gpt.formats.gguf_types import NAMES, OTHERS, TERNARY, TYPES, byte_length, decoded, decoded_ternary, encoded
from mlx_gpt.formats.ternary import Ternary
from mlx_gpt.parse import reading

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMS = 4
# NumPy types of the metadata types that are numbers, by the number of the type. Type 7 is bool, of one byte.
NUMBERS = {
    **{0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
STRING, ARRAY = 8, 9
Metadata = dict[str, Any]


# -- writing --------------------------------------------------------------------------------------------------------


def write(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray | Ternary], types: Mapping[str, str]
) -> None:
    """Writes a file of version 3. One tensor at a time is converted and written.

    Args:
        path: The file to write or replace.
        metadata: The metadata, see the module docstring.
        tensors: float32 arrays and ternary matrices by name. The innermost dimension is a multiple of the elements of
            a block.
        types: For each array F32, F16 or Q8_0, for each ternary matrix a type in TERNARY.

    Raises:
        UserError: The type cannot hold a tensor, see encoded(), or the file cannot be written.
        OutOfRoom: The disk is full.
    """
    stored = {}
    for name, tensor in tensors.items():
        kind = types[name]
        stored[name] = Stored(
            dims=tensor.shape[::-1],
            kind=TYPES[kind][0],
            size=byte_length(kind, tensor.shape),
            data=functools.partial(encoded, name, tensor, kind),
        )
    write_container(path, MAGIC, metadata, stored)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor to write.

    Attributes:
        dims: Its dimensions in the order of the file.
        kind: The number of its type.
        size: The number of its bytes.
        data: Returns the bytes.
    """

    dims: tuple[int, ...]
    kind: int
    size: int
    data: Callable[[], bytes]


def write_container(path: Path, magic: bytes, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
    """Writes a file that has the layout of GGUF, version 3, with any magic and any types of tensors."""
    write_atomic(path, _chunks(magic, metadata, tensors))


def _chunks(magic: bytes, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[bytes]:
    """Yields the header, then each tensor."""
    header = [magic, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [part for key, value in metadata.items() for part in (_string(key), *_value(value))]
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.dims
        header += [_string(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.kind, offset)]
        offset += _aligned(tensor.size, ALIGNMENT)
    yield _padded(b"".join(header))
    for tensor in tensors.values():
        yield _padded(tensor.data())


def _value(value: Any) -> list[bytes]:
    """The type and the bytes of a metadata value."""
    if isinstance(value, str):
        return [struct.pack("<I", STRING), _string(value)]
    if isinstance(value, list):
        return [struct.pack("<IIQ", ARRAY, STRING, len(value)), *map(_string, value)]
    value = np.asarray(value)
    kind = next(number for number, name in NUMBERS.items() if np.dtype(name) == value.dtype)
    if value.ndim:
        return [struct.pack("<IIQ", ARRAY, kind, value.size), value.tobytes()]
    return [struct.pack("<I", kind), value.tobytes()]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(size: int, alignment: int) -> int:
    """The lowest multiple of `alignment` that is at least `size`."""
    return -(-size // alignment) * alignment


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


# -- reading --------------------------------------------------------------------------------------------------------


def recognizes(path: Path) -> bool:
    """Whether a file begins with the magic of GGUF."""
    with reading(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> tuple[Metadata, dict[str, Entry]]:
    """Reads and checks everything except the tensors' bytes.

    Args:
        path: An existing file.

    Returns:
        The metadata, and the entries of the tensors by name. The dtype of an entry is a key of TYPES, and its shape has
        the innermost dimension last.

    Raises:
        BadFile: The file is not a valid GGUF file, is big-endian, or has a tensor of another type. The checks are: the
            header fits into the file; no key and no name occurs twice; the tensors follow each other, aligned, without
            gap or overlap, up to the end of the file. Nothing is allocated for a length that exceeds the file.
    """
    with reading(path) as file:
        return HeaderReader(path, file).read()


def read_tensor(file: BinaryIO, entry: Entry) -> np.ndarray:
    """Reads one tensor and converts it to float32.

    Args:
        file: The open file.
        entry: An entry that read_header() returned for this file, whose type is not in TERNARY.
    """
    file.seek(entry.first)
    return decoded(file, entry)


def read_ternary(file: BinaryIO, name: str, entry: Entry) -> Ternary:
    """Reads one ternary matrix.

    Args:
        file: The open file.
        name: The name of the tensor, for messages.
        entry: An entry of two dimensions that read_header() returned for this file, with a type in TERNARY.

    Raises:
        BadFile: A weight is not -1, 0 or 1 times the scale of its block.
    """
    file.seek(entry.first)
    return decoded_ternary(file, name, entry)


class HeaderReader:
    """Reads the header of an open file. Every read is bounded by the bytes that are left.

    A format that has the layout of GGUF, but another magic or other types of tensors, is read by a subclass.

    Attributes:
        magic: The first four bytes.
        container: The name of the format, for messages.
        metadata: The metadata read so far.
    """

    magic, container = MAGIC, "GGUF"

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.left = min(self.size, MAX_HEADER)
        self.metadata: Metadata = {}

    def bad(self, what: str) -> BadFile:
        return BadFile(f"{self.path}: not a complete {self.container} file ({what}); download or export it again")

    def take(self, count: int, what: str) -> bytes:
        """Reads `count` bytes."""
        if count > self.left:
            raise self.bad(f"{what} needs {count:,} bytes, but only {self.left:,} are left for the header")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise self.bad(f"it ends in {what}")
        return data

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), what))

    def text(self, what: str) -> str:
        [length] = self.numbers("Q", what)
        data = self.take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is not UTF-8 at its byte {error.start}") from None

    def name(self, what: str, earlier: Mapping[str, Any]) -> str:
        """Reads the key of an entry or the name of a tensor."""
        found = self.text(what)
        if not found.isprintable() or not 0 < len(found) <= MAX_NAME:
            raise self.bad(f"{what} is {found[:60]!r}, but it is printable and has 1 to {MAX_NAME} characters")
        if found in earlier:
            raise self.bad(f"{what} {found!r} occurs twice")
        return found

    def read(self) -> tuple[Metadata, dict[str, Entry]]:
        """Reads the whole header, see read_header()."""
        if self.take(4, "the magic") != self.magic:
            raise self.bad(f"it does not begin with {self.magic.decode()}")
        version = self.take(4, "the version")
        if int.from_bytes(version, "big") in (2, 3):
            raise BadFile(
                f"{self.path}: is a big-endian {self.container} file; convert it to little-endian, which is read"
            )
        if int.from_bytes(version, "little") not in (2, 3):
            raise BadFile(
                f"{self.path}: has {self.container} version {int.from_bytes(version, 'little')}; 2 and 3 are read, "
                "convert it again"
            )
        num_tensors, num_entries = self.numbers("QQ", "the number of tensors")
        metadata = self.metadata
        for _ in self.counted(num_entries, 13, "metadata entries"):
            key = self.name("a key", metadata)
            metadata[key] = self.value(key)
        alignment = metadata.get("general.alignment", np.uint32(ALIGNMENT))
        power = isinstance(alignment, np.uint32) and int(alignment).bit_count() == 1
        if not power or alignment > MAX_ALIGNMENT:
            raise self.bad(
                f"general.alignment is {str(alignment)[:60]}, but a power of 2 up to {MAX_ALIGNMENT} is allowed"
            )
        entries: dict[str, Entry] = {}
        for _ in self.counted(num_tensors, 32, "tensors"):
            name = self.name("a tensor's name", entries)
            entries[name] = self.info(name)
        return metadata, self.placed(entries, int(alignment))

    def counted(self, count: int, smallest: int, what: str) -> range:
        """A range over `count` items of at least `smallest` bytes each."""
        if count * smallest > self.left:
            raise self.bad(f"it should have {count:,} {what}, but only {self.left:,} bytes are left for the header")
        return range(count)

    def value(self, key: str) -> Any:
        [kind] = self.numbers("I", key)
        if kind == STRING:
            return self.text(key)
        if kind != ARRAY:
            return self.array(key, kind, 1)[0]
        kind, count = self.numbers("IQ", key)
        if kind == STRING:
            return [self.text(key) for _ in self.counted(count, 8, f"strings in {key}")]
        return self.array(key, kind, count)

    def array(self, key: str, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise self.bad(f"{key} has the type {kind}, which is not a type of GGUF, or an array of arrays")
        dtype = np.dtype(NUMBERS[kind])
        data = self.take(count * dtype.itemsize, key)
        if kind == 7 and data.strip(b"\0\1"):
            raise self.bad(f"{key} is a bool, but its byte is neither 0 nor 1")
        return np.frombuffer(data, dtype)

    def info(self, name: str) -> Entry:
        """Reads the rest of a tensor's info."""
        [num_dims] = self.numbers("I", name)
        if not 1 <= num_dims <= MAX_DIMS:
            raise self.bad(f"{name} has {num_dims} dimensions, but 1 to {MAX_DIMS} are allowed")
        *dims, kind, offset = self.numbers(f"{num_dims}QIQ", name)
        return self.entry(name, dims, kind, offset)

    def entry(self, name: str, dims: list[int], kind: int, offset: int) -> Entry:
        """The entry of a tensor. The range of its bytes counts from the end of the header. Raises BadFile."""
        if kind not in NAMES:
            known, readable = OTHERS.get(kind, f"number {kind}"), [name for name in TYPES if name not in TERNARY]
            raise BadFile(
                f"{self.path}: {name} has the tensor type {known}; {', '.join(readable)} are read, convert it to one "
                "of them with llama-quantize"
            )
        shape = tuple(reversed(dims))
        if not 0 < math.prod(dims) < 1 << 60 or dims[0] % TYPES[NAMES[kind]][1]:
            raise self.bad(f"{name} has the shape {shape}, which {NAMES[kind]} does not allow")
        return Entry(dtype=NAMES[kind], shape=shape, first=offset, end=offset + byte_length(NAMES[kind], shape))

    def placed(self, entries: dict[str, Entry], alignment: int) -> dict[str, Entry]:
        """Checks where the tensors lie. Returns the entries with ranges that count from the start of the file."""
        start = _aligned(self.file.tell(), alignment)
        ordered = sorted(entries.items(), key=lambda item: item[1].first)
        end = 0
        for name, entry in ordered:
            if entry.first != _aligned(end, alignment):
                raise self.bad(f"{name} begins at offset {entry.first:,}, but what precedes it ends at {end:,}")
            end = entry.end
        if entries and not start + end <= self.size <= start + _aligned(end, alignment):
            raise self.bad(f"its tensors end at byte {start + end:,}, and the file at byte {self.size:,}")
        return {
            name: Entry(dtype=e.dtype, shape=e.shape, first=start + e.first, end=start + e.end)
            for name, e in entries.items()
        }
