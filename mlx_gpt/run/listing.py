"""Lists the runs in a folder: the state of each, its best loss, its tokens, its time and its size."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import current_names
from mlx_gpt.errors import UserError
from mlx_gpt.files import is_locked
from mlx_gpt.parse import read_toml
from mlx_gpt.paths import BEST, LATEST
from mlx_gpt.watch.folders import METRICS, SETTINGS, find_runs
from mlx_gpt.watch.progress import Progress
from mlx_gpt.watch.tail import all_reports


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run folder tells about its run.

    Attributes:
        folder: The run folder.
        state: The state of the run; see Progress.state().
        step: Number of finished steps.
        iters: Total number of updates; None if it is not known.
        best_loss: Lowest validation loss in nats per token; None without an evaluation.
        tokens: Number of training tokens read.
        seconds: Training time.
        num_bytes: Size of all files in the folder.
        changed: The time at which a file of the folder changed last, in seconds since 1970.
        checkpoints: Names of the checkpoints.
        alerts: Kinds of the alerts, in order, each once.
    """

    folder: Path
    state: str
    step: int
    iters: int | None
    best_loss: float | None
    tokens: int
    seconds: float
    num_bytes: int
    changed: float
    checkpoints: tuple[str, ...]
    alerts: tuple[str, ...]


def list_runs(folder: Path) -> list[RunFacts]:
    """Returns the runs in a folder, those that changed last first. Links to other folders are not followed.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of your runs, or make a run with mlxgpt train")
    found = map(read_facts, find_runs(folder))
    return sorted(found, key=lambda facts: facts.changed, reverse=True)


def read_facts(folder: Path) -> RunFacts:
    """Reads the facts of a run folder. What cannot be read is missing."""
    progress = Progress()
    with contextlib.suppress(UserError):
        for report in all_reports(folder / METRICS, sparse=True):
            progress.add(report)
    found, (num_bytes, changed) = progress.summary(_settings(folder)), _files(folder)
    return RunFacts(
        folder=folder,
        state=progress.state(is_locked(folder)),
        step=found["step"] or 0,
        iters=found["iters"],
        best_loss=progress.best["val_loss"] if progress.best else None,
        tokens=int(found["tokens"] or 0),
        seconds=found["elapsed"] or 0.0,
        num_bytes=num_bytes,
        changed=changed,
        checkpoints=tuple(name for name in (LATEST, BEST) if (folder / name).is_file()),
        alerts=tuple(progress.alert_kinds),
    )


def _settings(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(UserError):
        return current_names(read_toml(folder / SETTINGS))
    return {}


def _files(folder: Path) -> tuple[int, float]:
    """The size of the files in a folder in bytes, and the time of the last change. Links are not followed."""
    num_bytes, changed = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(parent, name))
                if stat.S_ISREG(found.st_mode):
                    num_bytes += found.st_size
                    changed = max(changed, found.st_mtime) if name != ".lock" else changed
    return num_bytes, changed
