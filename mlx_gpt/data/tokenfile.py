"""The token file: the ids of a large corpus in the user's cache, with checksums.

For N ids of `width` bytes each, B blocks of BLOCK bytes of ids (the last one may be shorter) and D documents, the
layout is little-endian:

| offset            | size      | content                                                                         |
| ----------------- | --------- | ------------------------------------------------------------------------------- |
| 0                 | 128       | header: magic, version, width, N, D, SHA-256 of text and tokenizer, CRC-32      |
| 128               | N * width | the ids                                                                         |
| 128 + N * width   | D * 16    | each document's length (with EOS) and index of its source, int64 each           |
| ... + D * 16      | B * 4     | the CRC-32 of each block of ids, uint32 each                                    |
| ... + B * 4       | the rest  | a JSON object: the count of each character that is not in the vocabulary        |

The last three rows are the index. The CRC-32 in the header is that of the header before it, followed by the index.
Every byte of the file is therefore covered by a checksum.

Example: one source has the documents "ab" and "b". The ids are a = 2, b = 3 and EOS = 1, of one byte each. The file has
128 + 5 + 32 + 4 + 2 = 171 bytes: the header, the ids 2 3 1 3 1, the documents (3, 0) and (2, 0), the CRC-32 of the only
block, and the object {}.

read() reads the whole file and checks every checksum. This is done at each start, and not when a block is first used:
the whole text is read and hashed with SHA-256 at each start anyway, and a CRC-32 takes less time than that.

An interrupted encoding can be resumed:

- The ids are written to NAME.part, whose header is zeros at first. After about every SAVE_TOKENS ids, NAME.part is
  synced to the disk, and then the progress (`State`) and the checksums of the blocks are written to NAME.json, with a
  CRC-32 of their own. In this order, the state never counts an id that is not on the disk.
- The next attempt checks the ids that the state counts against the checksums, and truncates NAME.part after them. It
  skips the pieces of text that the state counts, and encodes the others. If a checksum does not match, or NAME.part is
  too short, it starts again.
- The header is written last, and then NAME.part gets its final name. A file with the final name is therefore complete.

Assume in the example that the state is saved every 3 ids, and that the process ends during the second document. The
state is {pieces: 1, count: 3, documents: [[3, 0]], length: 0, unknown: {}}. The next attempt truncates NAME.part to
128 + 3 bytes and encodes "b".
"""

import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mlx_gpt.errors import BadFile, Unreadable
from mlx_gpt.files import convert_os_errors, sync, write_atomic
from mlx_gpt.parse import parse_json

HEADER = struct.Struct("<8sIIQQ32s32s28xI")
MAGIC, VERSION = b"MLXGPTTK", 2
BLOCK = 1 << 20  # bytes of ids with a checksum of their own
SAVE_TOKENS = 16 << 20  # minimum number of ids between two saves of the encoding's progress


class Encoded(NamedTuple):
    """An encoded corpus.

    Attributes:
        ids: the ids of all documents, (N,) uint8, uint16 or uint32.
        documents: the length (with EOS) and the index of the source of each document, (D, 2) int64.
        unknown: the count of each character that was dropped because it is not in the vocabulary.
    """

    ids: np.ndarray
    documents: np.ndarray
    unknown: Counter


@dataclass
class State:
    """The progress of an encoding.

    Attributes:
        pieces: the number of pieces of text that were encoded.
        count: the number of ids of these pieces, with EOS.
        documents: the length (with EOS) and the index of the source of each complete document.
        length: the number of ids so far of the document that is not complete.
        unknown: the count of each character that was dropped because it is not in the vocabulary.
    """

    pieces: int = 0
    count: int = 0
    documents: list[list[int]] = field(default_factory=list)
    length: int = 0
    unknown: Counter = field(default_factory=Counter)


def read(path: Path, hashes: tuple[bytes, bytes], dtype: np.dtype, vocab_size: int) -> Encoded:
    """Reads a token file. Its ids are a memory map.

    Args:
        path: an existing file.
        hashes: the SHA-256 of the text and of the tokenizer.
        dtype: the type of the ids.
        vocab_size: the number of ids of the tokenizer.

    Raises:
        BadFile: if the file cannot be read, is truncated or damaged, or belongs to another text, tokenizer or version.
    """
    dtype = np.dtype(dtype)
    try:
        with open(path, "rb") as file:
            head, size = _head(path, file), os.fstat(file.fileno()).st_size
            magic, version, width, count, num_documents, *found, checksum = HEADER.unpack(head)
            if (magic, version, width, *found) != (MAGIC, VERSION, dtype.itemsize, *hashes):
                raise BadFile(f"{path}: written by another version, or for another text or tokenizer")
            first, num_blocks = HEADER.size + count * width, -(-count * width // BLOCK)
            if size < first + 16 * num_documents + 4 * num_blocks:
                raise _damaged(path, "it is truncated")
            file.seek(first)
            index = file.read()
            if zlib.crc32(index, zlib.crc32(head[:-4])) != checksum:
                raise _damaged(path, "its header or index does not match its checksum")
            file.seek(HEADER.size)
            checksums = np.frombuffer(index, "<u4", num_blocks, 16 * num_documents).tolist()
            highest = _highest(path, file, dtype, count, checksums)
            ids = np.memmap(file, dtype, "r", HEADER.size, (count,))
    except OSError as error:
        raise Unreadable(f"{path}: not a readable file: {error.strerror}") from None
    documents = np.frombuffer(index, "<i8", 2 * num_documents).reshape(-1, 2)
    unknown = Counter(parse_json(index[16 * num_documents + 4 * num_blocks :], str(path)))
    if documents[:, 0].sum() != count or (documents < 0).any() or highest >= vocab_size:
        raise _damaged(path, "its document lengths or ids are out of range")
    return Encoded(ids, documents, unknown)


def identify(path: Path) -> tuple[tuple[bytes, bytes], np.dtype]:
    """Returns what a token file says it is: the SHA-256 of the text and of the tokenizer, and the type of its ids.

    Raises:
        BadFile: if the file cannot be read, or is no token file of this version.
    """
    try:
        with open(path, "rb") as file:
            magic, version, width, _, _, text, tokenizer, _ = HEADER.unpack(_head(path, file))
    except OSError as error:
        raise Unreadable(f"{path}: not a readable file: {error.strerror}") from None
    if (magic, version) != (MAGIC, VERSION) or width not in (1, 2, 4):
        raise BadFile(f"{path}: not a token file of this version; make one with mlxgpt corpus import")
    return (text, tokenizer), np.dtype(f"<u{width}")


def _head(path: Path, file: BinaryIO) -> bytes:
    """Reads the header of an open file. Raises BadFile if the file is shorter."""
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise _damaged(path, "it is truncated")
    return head


class Writer:
    """Writes a token file, or continues an interrupted attempt as the module docstring describes.

    Args:
        path: the token file.
        hashes: the SHA-256 of the text and of the tokenizer.
        dtype: the type of the ids.

    Attributes:
        state: the progress. The caller changes it before each write().
        fault: why a saved attempt is not continued; None if there is none, or if it is continued.

    Raises:
        UserError, OutOfRoom: if the file cannot be written. This holds for all methods.
    """

    def __init__(self, path: Path, hashes: tuple[bytes, bytes], dtype: np.dtype):
        self._path, self._hashes, self._width = path, hashes, np.dtype(dtype).itemsize
        self._part, self._saved = (path.with_name(path.name + end) for end in (".part", ".json"))
        self.state, self._checksums, self.fault = State(), [], None
        with convert_os_errors(self._part):
            if self._saved.exists():
                try:
                    self.state, self._checksums = _load(self._part, self._saved, np.dtype(dtype))
                except BadFile as error:
                    self.fault = str(error)
            self._file = open(self._part, "r+b" if self.state.pieces else "wb")
            self._file.seek(HEADER.size + self.state.count * self._width)
            self._file.truncate()  # discards ids that were written after the last state
        self._last = self.state.count

    def write(self, ids: np.ndarray) -> None:
        """Appends ids that `state` counts already. Saves the state if SAVE_TOKENS ids were written since the last."""
        data = ids.tobytes()
        _extend(self._checksums, self.state.count * self._width - len(data), data)
        with convert_os_errors(self._part):
            self._file.write(data)
            if self.state.count - self._last >= SAVE_TOKENS:
                sync(self._file)  # before the state is written, which must not count ids that are not on the disk
                write_atomic(self._saved, [_signed(vars(self.state) | {"checksums": self._checksums})])
                self._last = self.state.count

    def finish(self) -> None:
        """Writes the index and the header, and gives the file its final name."""
        state = self.state
        index = np.array(state.documents, "<i8").tobytes() + np.array(self._checksums, "<u4").tobytes()
        index += json.dumps(state.unknown).encode()
        head = HEADER.pack(MAGIC, VERSION, self._width, state.count, len(state.documents), *self._hashes, 0)[:-4]
        with convert_os_errors(self._part):
            self._file.write(index)
            self._file.seek(0)
            self._file.write(head + struct.pack("<I", zlib.crc32(index, zlib.crc32(head))))
            sync(self._file)
            os.replace(self._part, self._path)
            self._saved.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file. Without finish(), a later Writer can continue after the last saved state."""
        self._file.close()


def _load(part: Path, saved: Path, dtype: np.dtype) -> tuple[State, list[int]]:
    """Returns the saved state of an interrupted attempt, and the checksums of the blocks that it counts.

    A state counts pieces of text, and corpus.PIECE decides where a text is cut into pieces. A version of mlxgpt with
    another PIECE therefore must not resume from the state; nothing checks this.

    Raises:
        BadFile: if the state is damaged, or if `part` does not hold the ids that it counts.
    """
    try:
        facts = parse_json(saved.read_bytes(), str(saved))
        signed = facts.pop("crc32") == zlib.crc32(json.dumps(facts).encode())
        checksums = facts.pop("checksums")
        state = State(**facts)
        state.unknown = Counter(state.unknown)
    except (ValueError, TypeError, KeyError, AttributeError):
        signed = False
    if not signed:
        raise BadFile(f"{saved}: damaged, or written by another version")
    try:
        with open(part, "rb") as file:
            file.seek(HEADER.size)
            _highest(part, file, dtype, state.count, checksums)
    except FileNotFoundError:
        raise BadFile(f"{part}: is missing") from None
    return state, checksums


def _signed(facts: dict) -> bytes:
    """Returns a JSON object as text, with the CRC-32 of its text without that entry."""
    return json.dumps(facts | {"crc32": zlib.crc32(json.dumps(facts).encode())}).encode()


def _highest(path: Path, file: BinaryIO, dtype: np.dtype, count: int, checksums: Iterable[int]) -> int:
    """Checks the next `count` ids of an open file. Returns the highest of them, or 0 if `count` is 0.

    The file is read in blocks and not through the memory map. The operating system counts every page of a map that was
    accessed as resident memory of the process.

    Raises:
        BadFile: if the file ends before them, or a block does not have its checksum.
    """
    highest, left = 0, count * dtype.itemsize
    for number, checksum in enumerate(checksums):
        data = file.read(min(BLOCK, left))
        left -= len(data)
        if zlib.crc32(data) != checksum:
            raise _damaged(path, f"block {number} of its ids does not match its checksum")
        highest = max(highest, int(np.frombuffer(data, dtype).max()))
    return highest


def _extend(checksums: list[int], count: int, data: bytes) -> None:
    """Adds bytes of ids, which follow `count` earlier ones, to the CRC-32 of each block of BLOCK bytes."""
    left = memoryview(data)
    while left:
        if count % BLOCK == 0:
            checksums.append(0)
        part = left[: BLOCK - count % BLOCK]
        checksums[-1] = zlib.crc32(part, checksums[-1])
        count, left = count + len(part), left[len(part) :]


def _damaged(path: Path, what: str) -> BadFile:
    return BadFile(f"{path}: the token file is damaged: {what}")
