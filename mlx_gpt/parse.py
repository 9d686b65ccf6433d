"""Reads JSON, TOML and text. A file that is too large, nested too deeply or holds a value that cannot be used is a
BadFile.

The values that cannot be used are NaN, infinity, integers of more than 64 bits, and lone surrogates, which are halves
of characters that UTF-8 cannot encode.
"""

import contextlib
import json
import math
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlx_gpt.errors import BadFile, Unreadable, UserError

MAX_BYTES = 64 << 20  # largest file
MAX_DEPTH = 64  # largest number of lists and objects around a value
MAX_INTEGER = 1 << 64

# A string, which may contain brackets, or a bracket. A string without an end reaches to the end of the text.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: There is no such file.
        BadFile: The file is not a regular file, has more than MAX_BYTES, or is not valid, see parse_json().
    """
    return parse_json(read_bytes(path), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises UserError and BadFile as read_json() does."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise BadFile(f"{path}: not a JSON object")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises UserError and BadFile as read_json() does."""
    return parse_toml(read_bytes(path), str(path))


def parse_json(data: bytes | str, name: str) -> Any:
    """Parses JSON.

    Args:
        data: The text. Bytes are UTF-8.
        name: The name of the file, for messages.

    Raises:
        BadFile: The text is not UTF-8, not JSON, has an object with two equal keys, is nested more than MAX_DEPTH deep,
            or holds a value that cannot be used. The message has the place.
    """
    return _parse(data, name, "JSON", lambda text: json.loads(text, object_pairs_hook=_object))


def parse_toml(data: bytes | str, name: str) -> dict[str, Any]:
    """Parses TOML. Arguments and errors are those of parse_json()."""
    return _parse(data, name, "TOML", tomllib.loads)


def read_bytes(path: Path) -> bytes:
    """Reads a whole file.

    Raises:
        UserError: There is no such file.
        BadFile: The file is not a regular file, cannot be read, or has more than MAX_BYTES.
    """
    with reading(path) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
    return _limited(data, str(path))


def read_text(path: Path) -> str:
    """Reads a whole UTF-8 file, or stdin if the path is "-".

    Raises:
        UserError: There is no such file.
        BadFile: It is not a regular file, cannot be read, has more than MAX_BYTES, or is not UTF-8 text.
    """
    name = "stdin" if str(path) == "-" else str(path)
    data = _limited(sys.stdin.buffer.read(MAX_BYTES + 1), name) if name == "stdin" else read_bytes(path)
    return _decoded(data, name, "a text file")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A context with a regular file that is open for reading.

    Raises:
        UserError: There is no such file.
        BadFile: It is not a regular file.
        Unreadable: It cannot be opened, or an OSError in the context: it cannot be read.
    """
    with open_regular(path) as file:
        try:
            yield file
        except OSError as error:
            raise Unreadable(f"{path}: not a readable file: {error.strerror}") from None


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        UserError: There is no such file.
        BadFile: It is not a regular file.
        Unreadable: It cannot be opened.
    """
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file; check its path")
        if not path.is_file():  # a FIFO or a device may have no end
            raise BadFile(f"{path}: not a readable file; it is a folder, a device or another special file")
        return open(path, "rb")
    except OSError as error:
        raise Unreadable(f"{path}: not a readable file: {error.strerror}") from None


def _limited(data: bytes, name: str) -> bytes:
    """Returns the data. Raises BadFile if it has more than MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise BadFile(f"{name}: has more than {MAX_BYTES:,} bytes, the largest size that is read")
    return data


def _decoded(data: bytes, name: str, kind: str) -> str:
    """Returns the text of UTF-8 data. Raises BadFile at the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{name}: not {kind}: byte {error.start} is 0x{data[error.start]:02x}, not UTF-8 text; convert it to UTF-8"
        ) from None


def _parse(data: bytes | str, name: str, language: str, parse: Callable[[str], Any]) -> Any:
    text = data if isinstance(data, str) else _decoded(data, name, f"a readable {language} file")
    _require_shallow(text, name)
    try:
        value = parse(text)
    except RecursionError:
        raise BadFile(f"{name}: is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        reason = str(error).partition("; use sys.set_int_max_str_digits")[0]  # the advice is for programmers
        raise BadFile(f"{name}: not a readable {language} file: {reason}") from None
    _require_usable(value, name)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object from its pairs. Raises ValueError if a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name[:60]!r} occurs twice")
    return found


def _require_shallow(text: str, name: str) -> None:
    """Raises BadFile if brackets are nested more than MAX_DEPTH deep. The parsers call themselves for each bracket."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, token.start()) + 1
            raise BadFile(f"{name}: line {line} is nested more than {MAX_DEPTH} deep, the largest depth that is read")


def _require_usable(root: Any, name: str) -> None:
    """Raises BadFile for a value that cannot be used, and for values nested more than MAX_DEPTH deep.

    A dotted TOML key nests tables without brackets.
    """
    waiting = [("", 0, root)] if isinstance(root, (dict, list)) else [("", 0, [root])]
    while waiting:
        place, depth, inside = waiting.pop()
        for key, value in inside.items() if isinstance(inside, dict) else enumerate(inside):
            if isinstance(value, (dict, list)):
                if depth >= MAX_DEPTH:
                    raise BadFile(f"{name}: {place[:60]} is nested more than {MAX_DEPTH} deep")
                waiting.append((f"{place}.{key}", depth + 1, value))
            if wrong := _unusable(value) or _unusable(key):
                raise BadFile(f"{name}: {wrong} at {f'{place}.{key}'.lstrip('.')[:60]!a} is not allowed")


def _unusable(value: Any) -> str | None:
    """Describes a value that cannot be used. Returns None for other values."""
    if isinstance(value, str):
        return None if value.isascii() or not _SURROGATE.search(value) else "a lone surrogate"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"the number {value}"
    if isinstance(value, int) and not -MAX_INTEGER < value < MAX_INTEGER:
        return "an integer of more than 64 bits"
    return None


_SURROGATE = re.compile("[\ud800-\udfff]")
