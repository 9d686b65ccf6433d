"""Files that are either whole or not there, and locks."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_gpt.errors import OutOfRoom, ResumeRefused, UserError


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes beside `path`, syncs, renames, syncs the folder. A failure leaves what was there, and nothing else."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with named(path):
        try:
            with open(temporary, "wb") as f:
                for chunk in chunks:
                    f.write(chunk)
                sync(f)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    with named(path):
        path.mkdir(parents=True, exist_ok=True)


def require_space(folder: Path, num_bytes: int, what: str, cure: str) -> None:
    """Raises OutOfRoom when the disk of `folder` holds less than the `num_bytes` that `what` needs."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutOfRoom(
            f"{folder}: {free / 1e6:.1f} MB free, {what} need {num_bytes / 1e6:.1f} MB; free some, or {cure}"
        )


class FolderLock:
    """Holds a run folder for this process. The system lets go of it however the process ends."""

    def __init__(self, folder: Path):
        import fcntl

        path = folder / ".lock"
        with named(path):
            self._file = open(path, "a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ResumeRefused(
                f"{folder}: another trainer is running in it; wait for it or choose another --out"
            ) from None

    def release(self) -> None:
        self._file.close()


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file for this process while it lasts; calls `waiting` if another process must be waited for."""
    import fcntl

    with named(path):
        file = open(path, "a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(file: BinaryIO) -> None:
    """Sees that what was written is on the disk."""
    file.flush()
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # plain fsync may stop at the drive's cache
            return
        except OSError:
            pass  # a network folder may not know it
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Makes the system's errors while writing `path` ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfRoom(f"{path}: no space left on the disk; free some and try again") from None
        if error.errno == errno.EFBIG:
            raise OutOfRoom(
                f"{path}: larger than the system's limit on files; raise it (ulimit -f) or choose another disk"
            ) from None
        raise UserError(f"{path}: {error.strerror}; choose a folder you can write to") from None
