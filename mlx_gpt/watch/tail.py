"""Reads the reports of a metrics.jsonl file that other processes may still write, replace or delete.

A `Tail` remembers how far it has read and reads only the bytes that were added since. It keeps the reports of no line,
so its memory does not depend on the size of the file.

Most lines of a long file are updates. A sparse reader parses an update only if no other update follows it directly.
That suffices for the progress of a run, and costs little more than reading the bytes.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlx_gpt.parse import open_regular

MAX_LINE = 1 << 20  # a longer line is not one that MetricsFile has written, in bytes
MAX_STEP = 1 << 53  # larger whole numbers are not exact in JavaScript
MAX_NUMBER = 1e100  # a larger number measures nothing, and sums of several could exceed the range of a float
CHUNK = 1 << 18  # bytes that one call reads by default
END = 1 << 15  # bytes at the end of a file that tell the state of the run
UPDATE_START = b'{"report": "step"'  # the first bytes of an update, as MetricsFile writes it
PROBE = 64  # bytes before the position that must be unchanged for the file to count as the same one


def parse_report(line: bytes) -> dict[str, Any] | None:
    """Parses a line of metrics.jsonl.

    Returns:
        The report, or None for a line that is damaged: it is not a JSON object, or its `step` is not a number from 0
        to MAX_STEP. NaN and infinity, which older versions could write, become None, also inside of objects and lists.
    """
    try:
        report = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and _is_step(report.get("step", 0)) else None


def number(value: Any) -> float | None:
    """Converts a value of a report to a float of at most MAX_NUMBER. Returns None for every other value."""
    if type(value) is float:
        return value if abs(value) <= MAX_NUMBER else None
    if type(value) is int and -(1 << 64) < value < 1 << 64:
        return float(value)
    return None


@dataclass(slots=True)
class Batch:
    """What one call of Tail.read() has read.

    Attributes:
        reports: The reports, in the order of the file.
        restarted: Whether the file was replaced, truncated or rewritten. Everything that was read before it is void.
        num_damaged: The number of lines that were skipped because they are damaged.
        num_bytes: The number of bytes read.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    restarted: bool = False
    num_damaged: int = 0
    num_bytes: int = 0


class Tail:
    """Reads a file of JSON Lines from where it stopped.

    Args:
        path: The file. Its last component may not be a symbolic link. The file may not exist yet.
        sparse: Whether to skip updates that another update of the same read() follows directly.

    Attributes:
        exists: Whether the file was there at the last call of read() or look().
        unread: The number of bytes that were in the file at that time and have not been read.
        mtime: The time of the last change of the file in seconds since 1970; 0 before it was seen.
    """

    def __init__(self, path: Path, sparse: bool = False):
        self.path, self._sparse = path, sparse
        self.exists, self.unread, self.mtime = False, 0, 0.0
        self._identity: tuple[int, int] | None = None
        self._start()

    def _start(self) -> None:
        self._position = 0
        self._rest = b""  # the beginning of a line whose end is not in the file yet
        self._oversized = False  # whether that line is longer than MAX_LINE and its beginning was discarded
        self._probe = b""  # the last bytes before the position

    def look(self) -> None:
        """Updates `exists`, `unread` and `mtime` without reading."""
        try:
            self._see(os.lstat(self.path))
        except OSError:
            self.exists, self.unread = False, 0

    def read(self, max_bytes: int = CHUNK) -> Batch:
        """Reads at most `max_bytes` new bytes. Raises nothing: a file that cannot be read has no new reports."""
        batch = Batch()
        try:
            # A FIFO without a writer would block without O_NONBLOCK, which has no effect on regular files.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            self.exists, self.unread = False, 0
            return batch
        try:
            status = os.fstat(descriptor)
            self._see(status)
            if self.exists:
                self._read(descriptor, status, max_bytes, batch)
        finally:
            os.close(descriptor)
        return batch

    def end(self, max_bytes: int = END) -> list[dict[str, Any]]:
        """The reports in the last `max_bytes` bytes, as a sparse reader reads them. Raises nothing, changes nothing."""
        other = Tail(self.path, sparse=True)
        other.look()
        other._position = max(other.unread - max_bytes, 0)
        other._oversized = other._position > 0  # the first line lacks its beginning
        return other.read(max_bytes).reports

    def _read(self, file: int, status: os.stat_result, max_bytes: int, batch: Batch) -> None:
        batch.restarted = self._is_other(file, status)
        if batch.restarted:
            self._start()
        self._identity = (status.st_dev, status.st_ino)
        data = _read_at(file, self._position, max_bytes)
        self._position += len(data)
        self._probe = (self._probe + data)[-PROBE:]
        batch.num_bytes = len(data)
        self.unread = max(status.st_size - self._position, 0)
        self._split(data, batch)

    def last_line(self) -> list[dict[str, Any]]:
        """The report of a last line without a newline, if it is complete. It is not counted as read."""
        report = parse_report(self._rest) if self._rest and not self._oversized else None
        return [] if report is None else [report]

    def _see(self, status: os.stat_result) -> None:
        self.exists = stat.S_ISREG(status.st_mode)
        self.mtime = status.st_mtime if self.exists else self.mtime
        same = self._identity in (None, (status.st_dev, status.st_ino)) and status.st_size >= self._position
        self.unread = (status.st_size - self._position if same else status.st_size) if self.exists else 0

    def _is_other(self, file: int, status: os.stat_result) -> bool:
        if self._identity is None:
            return False
        if self._identity != (status.st_dev, status.st_ino) or status.st_size < self._position:
            return True
        return _read_at(file, self._position - len(self._probe), len(self._probe)) != self._probe

    def _split(self, data: bytes, batch: Batch) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        for line, following in pairwise([*lines, b""]):
            if self._sparse and not self._oversized and _are_updates(line, following):
                continue
            if self._oversized or len(line) > MAX_LINE:
                self._oversized, report = False, None
            elif not line.strip():
                continue
            else:
                report = parse_report(line)
            if report is None:
                batch.num_damaged += 1
            else:
                batch.reports.append(report)
        if len(rest) > MAX_LINE:
            self._oversized, rest = True, b""
        self._rest = rest


def has_numbers(report: Mapping[str, Any], fields: Iterable[str]) -> bool:
    """Whether these fields of a report are finite numbers."""
    return all(number(report.get(field)) is not None for field in fields)


def all_reports(path: Path, sparse: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the reports that a file holds now; none if there is no file.

    Damaged lines are skipped. The last line may lack its newline. Symbolic links are followed.

    Args:
        path: The file.
        sparse: Whether to skip updates that another update follows directly.

    Raises:
        BadFile: The path is not a regular file, or cannot be read.
    """
    if not path.exists():
        return
    with open_regular(path):  # raises the error
        pass
    tail = Tail(path.resolve(), sparse)
    while batch := tail.read():
        yield from batch.reports
        if not batch.num_bytes:
            yield from tail.last_line()
            return


def _are_updates(*lines: bytes) -> bool:
    return all(line.startswith(UPDATE_START) for line in lines)


def _is_step(value: Any) -> bool:
    found = number(value)
    return found is not None and 0 <= found <= MAX_STEP


def _read_at(file: int, position: int, count: int) -> bytes:
    """Reads `count` bytes of a file descriptor, or fewer at the end of the file or if reading fails."""
    try:
        return os.pread(file, count, position)
    except OSError:
        return b""
