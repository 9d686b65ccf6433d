"""Files of token ids: raw files of other programs, and the token files that are made of them.

A raw file holds ids as little-endian uint16 or uint32, without a header. Documents are separated by EOS. Nothing in the
file says which of the two types it has, so raw_ids() looks for signs of the other type.

Files are read in chunks of CHUNK ids, and never through a memory map: the operating system would count its pages as
memory of the process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_gpt.config.schema import MAX_VOCAB
from mlx_gpt.data import tokenfile
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import reading

SUFFIX = ".tokens"
CHUNK = 1 << 18  # ids; an even number
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# In a file of uint32 ids that is read as uint16, every second id is the upper half of an id, and 0 or very small.
MIN_SIGNS = 16  # fewer ids say nothing about the type
MOST, FEW = 0.99, 0.5


@dataclass(frozen=True)
class IdFile:
    """A file of the ids of documents, which EOS ends.

    Attributes:
        path: the file.
        tokenizer: the digest of the tokenizer of the ids, see Tokenizer.digest.
        eos_id: the id of EOS.
        dtype: the type of the ids.
        first: the position of the first id in the file, in bytes.
        count: the number of ids.
    """

    path: Path
    tokenizer: bytes
    eos_id: int
    dtype: np.dtype
    first: int
    count: int

    @property
    def num_bytes(self) -> int:
        """The size of the ids in bytes."""
        return self.count * self.dtype.itemsize

    def pieces(self) -> Iterator[tuple[np.ndarray, bool]]:
        """Yields the documents that are not empty, in pieces of at most CHUNK ids without EOS.

        Each piece has a flag that is true for the last piece of a document.
        """
        return _documents(_chunks(self.path, self.dtype, self.first, self.count), self.eos_id)


def token_file(path: Path) -> IdFile:
    """Opens a token file, and checks all of its checksums. Raises BadFile as tokenfile.read() does."""
    hashes, dtype = tokenfile.identify(path)
    ids = tokenfile.read(path, hashes, dtype, MAX_VOCAB).ids
    if not len(ids):
        raise BadFile(f"{path}: holds no ids; import a file that has some")
    # Each document of a token file ends with EOS, and so does the file.
    return IdFile(path, hashes[1], int(ids[-1]), dtype, tokenfile.HEADER.size, len(ids))


def raw_ids(path: Path, dtype: str, tokenizer: Tokenizer) -> IdFile:
    """Opens a raw file, and checks all of its ids.

    Args:
        path: the file.
        dtype: "uint16" or "uint32".
        tokenizer: the tokenizer of the ids.

    Raises:
        UserError: if there is no such file, or if its ids look like those of the other type.
        BadFile: if the file is empty, if its size is not a multiple of the size of an id, or if an id is not in the
            vocabulary.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give a file of token ids")
    if not path.is_file():
        raise BadFile(f"{path}: is a folder or a special file; give a file of token ids")
    kind, size = DTYPES[dtype], path.stat().st_size
    if not size:
        raise BadFile(f"{path}: is empty; give a file of token ids")
    if size % kind.itemsize:
        other = "; give --dtype uint16, or" if size % 2 == 0 else ";"
        raise BadFile(
            f"{path}: has {size:,} bytes, which is not a multiple of the {kind.itemsize} bytes of a {dtype}{other} "
            "make the file again"
        )
    file = IdFile(path, tokenizer.digest(), tokenizer.eos_id, kind, 0, size // kind.itemsize)
    _require_ids(file, dtype, tokenizer.vocab_size)
    return file


def _require_ids(file: IdFile, dtype: str, vocab_size: int) -> None:
    """Raises UserError if the ids are of the other type, and BadFile if one is not in the vocabulary."""
    first, outside, halves_fit, upper = None, 0, True, (vocab_size - 1) >> 16
    small = np.zeros(2, np.int64)  # ids that are at most `upper`, at even and at odd positions
    position = 0
    for ids in _chunks(file.path, file.dtype, 0, file.count):
        beyond = np.flatnonzero(ids >= vocab_size)
        if len(beyond) and first is None:
            first = position + int(beyond[0]), int(ids[beyond[0]])
        outside += len(beyond)
        halves_fit &= int(ids.view("<u2").max()) < vocab_size
        small += [np.count_nonzero(ids[i::2] <= upper) for i in range(2)]
        position += len(ids)
    even, odd = small / np.maximum([file.count - file.count // 2, file.count // 2], 1)
    if dtype == "uint16" and file.count % 2 == 0 and file.count >= MIN_SIGNS and odd >= MOST and even < FEW:
        raise UserError(
            f"{file.path}: every second id is {f'at most {upper}' if upper else '0'}, as in a file of uint32 ids that "
            "is read as uint16; give --dtype uint32"
        )
    if dtype == "uint32" and halves_fit and outside > FEW * file.count:
        raise UserError(
            f"{file.path}: {outside:,} of {file.count:,} ids are not below {vocab_size:,}, but both halves of each "
            "are, as in a file of uint16 ids that is read as uint32; give --dtype uint16"
        )
    if first:
        raise BadFile(
            f"{file.path}: the id {first[1]:,} at position {first[0]:,} is not in the vocabulary of {vocab_size:,} "
            f"ids ({outside:,} ids are not); give the --vocab that the file was made with"
        )


def _chunks(path: Path, dtype: np.dtype, first: int, count: int) -> Iterator[np.ndarray]:
    """Yields `count` ids from byte `first` on, in arrays of at most CHUNK ids."""
    with reading(path) as file:
        file.seek(first)
        while count:
            data = file.read(min(CHUNK, count) * dtype.itemsize)
            if len(data) < min(CHUNK, count) * dtype.itemsize:
                raise BadFile(f"{path}: became shorter while it was read; make it again")
            yield (ids := np.frombuffer(data, dtype))
            count -= len(ids)


def _documents(chunks: Iterable[np.ndarray], eos_id: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Divides a stream of ids into documents at EOS. See IdFile.pieces."""
    begun, nothing = False, np.empty(0, np.uint32)
    for ids in chunks:
        *ended, rest = np.split(ids, np.flatnonzero(ids == eos_id))
        for number, document in enumerate(ended):
            document = document[1:] if number else document  # without the EOS that it was divided at
            if len(document) or begun:
                yield document, True
            begun = False
        rest = rest[1:] if ended else rest
        if len(rest):
            yield rest, False
            begun = True
    if begun:
        yield nothing, True
