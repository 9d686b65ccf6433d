"""Breaks one of the calls by which this process uses files: the process dies, the power fails, or the call fails.

`Disk(folder, at, fault)` replaces open(), the reads and writes of open files, and the functions of `os` that change
files or sync them, as far as they concern files below `folder`. It counts the calls. Call number `at` meets the fault:

* `Dead` is the death of the process. This and every later call raises Dead, which no code of ours catches, and nothing
  that was still in a buffer reaches the disk. `power_off` then also takes away what was not synced.
* An errno is the error of this call, or with `lasting` of this and every later call of the same kind.
* `SHORT` makes a read return half of its bytes, and `END` none, as at the end of the file.
"""

import builtins
import contextlib
import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

SHORT, END = "short", "end"
PROCESS = 99_999_999  # the id of a process that does not exist
CHANGES = ("replace", "rename", "unlink", "mkdir", "rmdir")


class Dead(BaseException):
    """The process has died."""


class Disk(contextlib.ExitStack):
    """A context in which the files below a folder are as described above.

    Args:
        folder: The folder.
        at: The number of the call that meets the fault, from 0; None for no fault.
        fault: Dead, an errno, SHORT or END.
        lasting: Whether later calls of the same kind have the same error.
        reads: Whether to count opening and reading instead of the calls that change files.

    Attributes:
        calls: The kinds of the calls so far: "open", "write", "read", "fsync", "replace", ...
    """

    def __init__(self, folder: Path, at: int | None = None, fault=Dead, lasting: bool = False, reads: bool = False):
        super().__init__()
        self._folder, self._at, self._fault = os.path.realpath(folder), at, fault
        self._lasting, self._reads, self.calls = lasting, reads, []
        self._names, self._data = self._listing(), {}
        for path, number in self._names.items():
            self._data[number] = path.read_bytes()

    def __enter__(self):
        for module in (builtins, io):
            self.enter_context(mock.patch.object(module, "open", self._opening(module.open)))
        self.enter_context(mock.patch.object(os, "fsync", self._fsync(os.fsync)))
        self.enter_context(mock.patch.object(os, "getpid", lambda: PROCESS))
        for name in CHANGES:
            self.enter_context(mock.patch.object(os, name, self._counted(name, getattr(os, name))))
        return self

    @property
    def is_met(self) -> bool:
        """Whether the call with the fault was made."""
        return self._at is not None and len(self.calls) > self._at

    def count(self, kind: str) -> str | None:
        """Counts a call, and raises its fault. Returns SHORT or END for the caller to do."""
        if self._at is None or not self.is_met and len(self.calls) < self._at:
            self.calls.append(kind)
            return None
        is_first = not self.is_met
        self.calls.append(kind)
        if self._fault is Dead:
            raise Dead
        if not is_first and not (self._lasting and kind == self.calls[self._at]):
            return None
        if isinstance(self._fault, int):
            raise OSError(self._fault, os.strerror(self._fault))
        return self._fault

    def power_off(self, keeps_data: bool, keeps_names: bool) -> None:
        """Leaves what the disk has after the power has failed. Call it after the context.

        Args:
            keeps_data: Whether the disk has the data that was written and not synced.
            keeps_names: Whether it has the new, renamed and removed names in folders that were not synced since.
        """
        names = self._listing()
        data = self._data | ({number: path.read_bytes() for path, number in names.items()} if keeps_data else {})
        for path in names:
            path.unlink()
        for path, number in (names if keeps_names else self._names).items():
            path.write_bytes(data.get(number, b""))

    def _listing(self) -> dict[Path, int]:
        """The inode of each file."""
        return {path: path.stat().st_ino for path in sorted(Path(self._folder).rglob("*")) if path.is_file()}

    def _is_inside(self, path) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(self._folder + os.sep)

    def _opening(self, plain: Callable) -> Callable:
        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **rest):
            is_read = not set(mode) & set("wxa+")
            if not self._is_inside(file) or is_read != self._reads:
                return plain(file, mode, buffering, encoding, errors, newline, **rest)
            self.count("open")
            is_new = not is_read and not os.path.exists(file)
            raw = _File(file, mode.replace("b", "").replace("t", ""))
            raw.count = self.count
            if is_new:
                self._data.pop(os.fstat(raw.fileno()).st_ino, None)
            buffered = io.BufferedReader(raw) if is_read else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

        return opened

    def _counted(self, name: str, plain: Callable) -> Callable:
        def call(path, *rest, **options):
            if self._is_inside(path) and not self._reads:
                self.count(name)
            return plain(path, *rest, **options)

        return call

    def _fsync(self, plain: Callable) -> Callable:
        def call(file):
            if not self._reads:
                self.count("fsync")
            plain(file)
            status = os.stat(file if isinstance(file, int) else file.fileno())
            for path, number in self._listing().items():
                if stat.S_ISDIR(status.st_mode) and path.parent.stat().st_ino == status.st_ino:
                    self._names[path] = number
                elif number == status.st_ino:
                    self._data[number] = path.read_bytes()
            if stat.S_ISDIR(status.st_mode):
                self._names = {path: number for path, number in self._names.items() if path.exists()}

        return call


class _File(io.FileIO):
    """An unbuffered file that counts its reads and writes."""

    count: Callable[[str], str | None]

    def write(self, data):
        self.count("write")
        return super().write(data)

    def readinto(self, buffer):
        fault = self.count("read")
        view = memoryview(buffer)
        return 0 if fault == END else super().readinto(view[: len(view) // 2 or 1] if fault == SHORT else view)

    def readall(self):
        return b"".join(iter(lambda: self.read(1 << 16), b""))

    def read(self, size=-1):
        if size is None or size < 0:
            return self.readall()
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])


def each_call(make: Callable[[int], Disk]) -> Iterator[Disk]:
    """Yields make(0), make(1), ... until one of them has come to its end without meeting its fault."""
    for at in itertools.count():
        disk = make(at)
        yield disk
        if not disk.is_met:
            return
