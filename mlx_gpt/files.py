"""Atomic file writes, lock files, disk-space checks, and operating-system errors as messages for the user."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_gpt.errors import OutOfRoom, ResumeRefused, UserError

TEST_SECONDS = 0.05  # more than is_locked() holds a lock


def require_destination(src: Path, dst: Path, force: bool) -> None:
    """Raises UserError unless a file may be written.

    Args:
        src: The file that is read.
        dst: The file to write. It must not be src or a folder, and its folder must exist.
        force: Whether dst may exist.
    """
    if dst.is_dir():
        raise UserError(f"{dst}: is a folder; name a file in it")
    if not dst.parent.is_dir():
        raise UserError(f"{dst}: there is no folder {dst.parent}; create it")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst}: is the file that is read; name another file to write")
    if dst.exists() and not force:
        raise UserError(f"{dst}: already exists; name another file, or overwrite it with --force")


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes a file that is complete or, after a failure or a crash, unchanged.

    The order matters: the data must be on the disk before the rename, or a crash can leave an empty file under the
    final name. The folder is synced last, so that the rename itself is on the disk when the function returns.

    Args:
        path: the file to write or replace.
        chunks: its content.

    Raises:
        OutOfRoom: if the disk is full.
        UserError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with convert_os_errors(path):
        try:
            with open(temporary, "wb") as f:
                for chunk in chunks:
                    f.write(chunk)
                sync(f)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files that write_atomic() left in a folder because its process was killed.

    The name of a temporary file ends with the id of its process. Files of processes that are alive are kept, also of
    one that has got the id of a dead process.

    Raises:
        UserError: if a file cannot be removed.
    """
    for path in abandoned(folder):
        with convert_os_errors(path):
            path.unlink(missing_ok=True)


def abandoned(folder: Path) -> list[Path]:
    """Returns the temporary files of a folder that remove_abandoned() removes."""
    found = [(path, path.name.rpartition("-")[2]) for path in folder.glob(".*.tmp-*")]
    return [path for path, process in found if process.isdecimal() and not _is_alive(int(process))]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # the signal 0 only checks whether the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it exists and belongs to another user
    return True


def make_folder(path: Path) -> None:
    """Creates a folder and its parents unless they exist. Raises UserError or OutOfRoom if that fails."""
    with convert_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def fresh_folder(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A context with a new folder that only the user can open. The folder is removed if the context fails.

    Args:
        parent: the folder to create it in; None for the system's temporary folder.
        prefix: the beginning of its name.

    Raises:
        OutOfRoom: if the disk is full.
        UserError: if the folder cannot be created.
    """
    with convert_os_errors(parent or Path("temporary folder")):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def require_space(folder: Path, num_bytes: int, what: str, remedy: str) -> None:
    """Raises OutOfRoom if the disk of `folder` has less than `num_bytes` free.

    Args:
        folder: an existing folder on that disk.
        num_bytes: the space needed.
        what: what needs the space, a plural, for the message.
        remedy: what the user can do besides freeing space, for the message.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutOfRoom(
            f"{folder}: {free / 1e6:.1f} MB free, but {what} need {num_bytes / 1e6:.1f} MB; free some space, or "
            f"{remedy}"
        )


class FolderLock:
    """An exclusive lock on a run folder.

    The lock lasts until `release`. The operating system also releases it when the process ends, even after a crash.

    Raises:
        ResumeRefused: if another process has the lock.
        UserError: if the lock file cannot be opened.
    """

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        with convert_os_errors(self._path):
            self._file = open(self._path, "a")
        if not self._try() and not (time.sleep(TEST_SECONDS) or self._try()):
            self._file.close()
            raise ResumeRefused(
                f"{folder}: another trainer is running in this folder; wait until it ends, or choose another --out"
            )

    def _try(self) -> bool:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def require_held(self) -> None:
        """Raises UserError if the lock file at this path is no longer the one that was locked.

        That is so if the folder was moved, removed or replaced. Another process may then have locked the new one.
        """
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            is_same = False
        if not is_same:
            raise UserError(
                f"{self._path.parent}: is no longer the folder of this run, it or its file .lock was moved, removed or "
                "replaced; move it back, or end the run to save it elsewhere"
            )

    def release(self) -> None:
        """Releases the lock: closing the file releases its `flock`."""
        self._file.close()


def is_locked(folder: Path) -> bool:
    """Whether a process has the FolderLock of a folder. Does not follow a link in place of the lock file.

    The lock is tested by locking it for a moment, shared with other tests.
    """
    import fcntl

    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """A context that holds an exclusive lock on the file `path`. The file is created if it does not exist.

    Args:
        path: the lock file.
        waiting: called once, before blocking, if another process has the lock.
    """
    import fcntl

    with convert_os_errors(path):
        file = open(path, "a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(file: BinaryIO) -> None:
    """Writes a file's data to the disk: flushes the buffers of Python, of the system and, on macOS, of the drive."""
    file.flush()
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # on macOS fsync alone leaves the data in the drive's cache
            return
        except OSError:
            pass  # not supported by some network file systems
    os.fsync(file)


def _sync_folder(folder: Path) -> None:
    """Writes the entries of a folder to the disk, so that a rename in it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def convert_os_errors(path: Path) -> Iterator[None]:
    """A context that converts each OSError to an OutOfRoom or UserError that names `path` and the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfRoom(f"{path}: no space left on the disk; free some space and try again") from None
        if error.errno == errno.EFBIG:
            raise OutOfRoom(
                f"{path}: exceeds the system's limit on file size; raise the limit (ulimit -f) or choose another disk"
            ) from None
        raise UserError(f"{path}: {error.strerror}; choose a folder you can write to") from None
