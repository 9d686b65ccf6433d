"""Reads text files and JSON Lines files, plain or compressed with gzip. Only a bounded part is in memory at a time."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlx_gpt.errors import BadFile

# A gzip file may expand to MAX_RATIO times its own size, or to FREE_BYTES if that is more. DEFLATE reaches 1,000 for
# text that repeats itself; natural text reaches 10.
MAX_RATIO, FREE_BYTES = 100, 64 << 20
MAX_JSON_LINE = 64 << 20  # largest line of a JSON Lines file, in bytes


def read_documents(path: Path, size: int) -> Iterator[Iterable[str]]:
    """Reads a file as texts, each an iterable of strings whose concatenation is the text.

    A file whose name ends in .jsonl or .jsonl.gz has one text for each line that is not blank: the string under "text".
    Any other file is one text. A file whose name ends in .gz is decompressed.

    Args:
        path: The file.
        size: The largest length of the strings, in characters.

    Raises:
        BadFile: The file is not a regular file, cannot be read, is not UTF-8 text or JSON Lines, or exceeds a limit.
    """
    if path.name.lower().endswith((".jsonl", ".jsonl.gz")):
        return ([text[i : i + size] for i in range(0, len(text), size)] for text in _json_lines(path))
    return iter([_text(path, size)])


def text_size(path: Path) -> int:
    """The size of a file in bytes; of a file whose name ends in .gz, after decompression, which takes a pass over it.

    Raises:
        BadFile: The file is not a complete gzip file, although its name ends in .gz, or expands beyond the limit.
    """
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size
    with _File(path) as file:
        return sum(map(len, iter(lambda: file.read(1 << 20), b"")))


class _File:
    """A file that is open for reading bytes, decompressed if its name ends in .gz.

    Raises BadFile if opening or a read fails, or if a gzip file expands beyond the limit.
    """

    def __init__(self, path: Path):
        self._path, self._is_gzip, self._count = path, path.name.lower().endswith(".gz"), 0
        try:
            if not path.is_file():  # a FIFO or a device may have no end
                raise BadFile(f"corpus {path}: is not a regular file; give a file or folder of UTF-8 text")
            self._limit = max(MAX_RATIO * path.stat().st_size, FREE_BYTES)
            self._file = gzip.open(path) if self._is_gzip else open(path, "rb")
        except OSError as error:
            raise BadFile(f"corpus {path}: {error.strerror}; give a readable file of UTF-8 text") from None

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Reads up to `size` bytes. Returns b"" at the end."""
        return self._checked(self._file.read, size)

    def readline(self, size: int) -> bytes:
        """Reads up to the end of the line, or up to `size` bytes. Returns b"" at the end."""
        return self._checked(self._file.readline, size)

    def _checked(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            data = read(size)
        except (OSError, EOFError, zlib.error) as error:
            if not self._is_gzip:
                raise BadFile(f"corpus {self._path}: {error.strerror}; give a readable file of UTF-8 text") from None
            raise BadFile(
                f"corpus {self._path}: not a complete gzip file: {error}; download or compress it again"
            ) from None
        self._count += len(data)
        if self._is_gzip and self._count > self._limit:
            raise BadFile(
                f"corpus {self._path}: expands to more than {self._limit:,} bytes, the largest of {MAX_RATIO} times "
                f"its size and {FREE_BYTES:,} bytes; decompress it with gunzip if you trust it"
            )
        return data


def _text(path: Path, size: int) -> Iterator[str]:
    """Yields the text of a file. Raises BadFile at the first byte that is not UTF-8, and names its offset."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _File(path) as file:
        while True:
            block = file.read(size)
            pending = len(decoder.getstate()[0])  # bytes of a character that began at the end of the previous block
            try:
                text = decoder.decode(block, final=not block)
                yield text if offset else text.removeprefix("\ufeff")  # a byte order mark
            except UnicodeDecodeError as error:
                position = offset - pending + error.start  # the decoder counts error.start from the first pending byte
                raise BadFile(
                    f"corpus {path}: byte {position} is 0x{error.object[error.start]:02x}, not UTF-8 text; convert the "
                    "file to UTF-8"
                ) from None
            if not block:
                return
            offset += len(block)


def _json_lines(path: Path) -> Iterator[str]:
    """Yields the field `text` of each line. Blank lines are skipped.

    Raises:
        BadFile: A line is longer than MAX_JSON_LINE, or is not a JSON object with a string `text`.
    """
    number = 0
    with _File(path) as file:
        while line := file.readline(MAX_JSON_LINE + 1):
            number += 1
            if len(line) > MAX_JSON_LINE:
                raise BadFile(
                    f"corpus {path}: line {number} has more than {MAX_JSON_LINE:,} bytes; divide its text into several "
                    "lines"
                )
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BadFile(f'corpus {path}: line {number} is not a JSON object with a string under "text"') from None
            # JSON can contain escaped lone surrogates, such as "\ud800". UTF-8 cannot encode them; they become "?".
            yield text.encode("utf-8", "replace").decode()
