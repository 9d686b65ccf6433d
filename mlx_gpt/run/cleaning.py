"""Deletes runs and checkpoints that are no longer needed.

Nothing but the files of a run is deleted, and nothing outside its folder. Links are not followed.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.errors import UserError
from mlx_gpt.files import FolderLock, abandoned, convert_os_errors
from mlx_gpt.paths import BEST, LATEST
from mlx_gpt.run.listing import RunFacts
from mlx_gpt.watch.folders import MARKS

# Files and folders that a run, an evaluation or a log writes to a run folder. Others are kept, with their folder.
FILES = (*MARKS, "vocab.json", "tokenizer.json", "rollouts.jsonl", "reference.safetensors", "eval-code.jsonl")
FILES += (".wandb-id", f"{LATEST}.corrupt-*", f"{BEST}.corrupt-*")
FOLDERS = ("tensorboard", "wandb")
RESUME_ONLY = (LATEST, "reference.safetensors")  # files of a run that are only needed to continue it
DAY = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """Something to delete.

    Attributes:
        run: The run.
        paths: The files and folders in its folder.
        whole: Whether the folder itself is deleted too, if nothing else is in it.
        reason: Why.
        num_bytes: Size of what is deleted.
    """

    run: RunFacts
    paths: tuple[Path, ...]
    whole: bool
    reason: str
    num_bytes: int


def plan_cleaning(
    runs: Sequence[RunFacts], now: float, keep: int | None = None, days: float | None = None, checkpoints: bool = False
) -> Iterator[Deletion]:
    """Yields what to delete: runs without a checkpoint, old runs, checkpoints, and files of killed processes.

    A run that trains is left alone.

    Args:
        runs: The runs, those that changed last first.
        now: The time, in seconds since 1970.
        keep: Delete the runs after this many with a checkpoint. With `days`, only those that both options name.
        days: Delete the runs that have not changed for so many days.
        checkpoints: Delete the last checkpoint of finished runs that have a best one. They cannot be continued then.
    """
    kept = 0
    for run in runs:
        kept += bool(run.checkpoints)
        if run.state == "training":
            continue
        old = (now - run.changed) / DAY
        chosen = [keep is None or kept > keep, days is None or old > days]
        if not run.checkpoints:
            yield _deletion(run, "has no checkpoint")
        elif all(chosen) and (keep, days) != (None, None):
            yield _deletion(run, f"changed {old:.1f} days ago" + (f", after {keep} newer runs" * (keep is not None)))
        else:
            if leftovers := abandoned(run.folder):
                yield _deletion(run, "left by a killed process", leftovers)
            if checkpoints and run.state == "finished" and set(run.checkpoints) == {LATEST, BEST}:
                paths = [path for name in RESUME_ONLY if (path := run.folder / name).is_file()]
                yield _deletion(run, f"only needed to continue the run; {BEST} stays", paths)


def _deletion(run: RunFacts, reason: str, paths: Sequence[Path] = ()) -> Deletion:
    """Deletes these paths, or the whole run."""
    whole = not paths
    if whole:
        paths = [
            path for name in FILES for path in sorted(run.folder.glob(name)) if path.is_file() or path.is_symlink()
        ]
        paths += [path for name in FOLDERS if (path := run.folder / name).is_dir() and not path.is_symlink()]
        paths += abandoned(run.folder)
    return Deletion(run=run, paths=tuple(paths), whole=whole, reason=reason, num_bytes=sum(map(_size, paths)))


def delete(deletion: Deletion) -> bool:
    """Deletes. Returns whether the folder of the run is gone, which it is not if it has other files.

    Raises:
        ResumeRefused: A process trains in the folder.
        UserError: The folder is a link by now, or something cannot be deleted.
    """
    folder = deletion.run.folder
    if folder.is_symlink() or (folder / ".lock").is_symlink():
        raise UserError(f"{folder}: it, or its file .lock, is a link by now; it is left as it is")
    lock = FolderLock(folder)
    try:
        for path in deletion.paths:
            with convert_os_errors(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        if deletion.whole and {path.name for path in folder.iterdir()} <= {".lock"}:
            with convert_os_errors(folder):
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()
            return True
    finally:
        lock.release()
    return False


def _size(path: Path) -> int:
    if path.is_symlink():
        return 0
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.lstat().st_size for part in parts if part.is_file() and not part.is_symlink())
