"""Files that are either whole or not there, and a lock on a run folder."""

import errno
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from mlx_gpt.errors import OutOfRoom, ResumeRefused, UserError


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes beside `path`, syncs, renames, syncs the folder. A failure leaves what was there, and nothing else."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as f:
            for chunk in chunks:
                f.write(chunk)
            f.flush()
            _sync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _named(error, path) from None


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises OutOfRoom when the disk of `folder` holds less than `num_bytes` more."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutOfRoom(
            f"{folder}: {free / 1e6:.1f} MB free, the run's two checkpoints need {num_bytes / 1e6:.1f} MB; "
            "free some, or choose another --out"
        )


class FolderLock:
    """Holds a run folder for this process. The system lets go of it however the process ends."""

    def __init__(self, folder: Path):
        import fcntl

        path = folder / ".lock"
        try:
            self._file = open(path, "a")
        except OSError as error:
            raise _named(error, path) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ResumeRefused(
                f"{folder}: another trainer is running in it; wait for it or choose another --out"
            ) from None

    def release(self) -> None:
        self._file.close()


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # plain fsync may stop at the drive's cache
            return
        except OSError:
            pass  # a network folder may not know it
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(error: OSError, path: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfRoom(f"{path}: no space left on the disk; free some and try again")
    if error.errno == errno.EFBIG:
        return OutOfRoom(
            f"{path}: larger than the system's limit on files; raise it (ulimit -f) or choose another disk"
        )
    return UserError(f"{path}: {error.strerror}; choose a folder you can write to")
