"""Lists the runs in a folder: the state of each, its best loss, its tokens, its time and its size."""

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import current_names
from mlx_gpt.errors import UserError
from mlx_gpt.files import is_locked
from mlx_gpt.parse import read_toml
from mlx_gpt.paths import BEST, LATEST
from mlx_gpt.watch.metrics import each_line

MARKS = ("run.toml", "metrics.jsonl", LATEST, BEST)  # a folder with one of these files is a run folder
DEPTH = 2  # levels below a folder at which its runs are: those of a pipeline are in a folder of their own
# StopReport.reason -> the state of the run.
STATES = {"iters": "finished", "minutes": "finished", "patience": "finished", "signal": "stopped"}
STATES |= {"diverged": "diverged"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a run folder tells about its run.

    Attributes:
        folder: The run folder.
        state: "training" (a process has the lock of the folder), "finished", "stopped" (by a signal), "diverged",
            "failed" (by an error), "killed" (the process ended without a report), or "unknown" (no reports that tell
            it, as in the files of mlxgpt 0.1).
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
        raise UserError(f"{folder}: no such folder; name a folder with runs, such as runs")
    found = map(read_facts, find_runs(folder))
    return sorted(found, key=lambda facts: facts.changed, reverse=True)


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yields the run folders: the folder itself, or those up to `depth` levels below it. Folders inside runs are not
    searched, and neither are links."""
    if any((folder / name).is_file() for name in MARKS):
        yield folder
    elif depth:
        with contextlib.suppress(OSError):
            for child in sorted(folder.iterdir()):
                if child.is_dir() and not child.is_symlink():
                    yield from find_runs(child, depth - 1)


def read_facts(folder: Path) -> RunFacts:
    """Reads the facts of a run folder. What cannot be read is missing."""
    lines = _Lines()
    with contextlib.suppress(UserError):
        for line in each_line(folder / "metrics.jsonl"):
            lines.add(line)
    num_bytes, changed = _files(folder)
    return RunFacts(
        folder=folder,
        state="training" if is_locked(folder) else lines.state,
        step=lines.step,
        iters=lines.iters or _iters(folder),
        best_loss=lines.best if math.isfinite(lines.best) else None,
        tokens=lines.tokens,
        seconds=lines.seconds,
        num_bytes=num_bytes,
        changed=changed,
        checkpoints=tuple(name for name in (LATEST, BEST) if (folder / name).is_file()),
        alerts=tuple(lines.alerts),
    )


class _Lines:
    """The facts in the lines of a metrics.jsonl."""

    def __init__(self):
        self.state, self.step, self.iters = "unknown", 0, None
        self.best, self.tokens, self.seconds = math.inf, 0, 0.0
        self.alerts: dict[str, None] = {}

    def add(self, line: dict[str, Any]) -> None:
        kind = line.get("report")
        self.step = int(_number(line, "step", self.step))
        self.tokens = int(_number(line, "tokens", self.tokens))
        self.seconds = _number(line, "elapsed", self.seconds)
        self.best = min(self.best, _number(line, "val_loss", math.inf))
        if kind == "plan":
            self.iters = int(_number(line, "iters", 0)) or None
        if kind == "alert":
            self.alerts[str(line.get("kind"))] = None
        elif kind == "stop":
            self.state = STATES.get(line.get("reason"), "unknown")
        elif kind is not None:  # the reports of mlxgpt 0.1 have no kind, and the end of a run has none there
            self.state = "failed" if kind == "failure" else "killed"


def _number(line: dict[str, Any], name: str, otherwise: float) -> float:
    value = line.get(name)
    return value if type(value) in (int, float) and math.isfinite(value) else otherwise


def _iters(folder: Path) -> int | None:
    with contextlib.suppress(UserError):
        value = current_names(read_toml(folder / "run.toml")).get("train", {}).get("iters")
        return value if type(value) is int else None


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
