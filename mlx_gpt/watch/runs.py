"""The runs below some folders, as their files describe them: progress, series, samples, alerts and settings.

Nothing here writes a file or keeps a lock, so training does not notice that a run is watched. Each refresh reads at
most a given number of bytes, and only bytes that are new, besides the end of each file when it is first seen.
"""

import os
import stat
import statistics
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import current_names
from mlx_gpt.errors import UserError
from mlx_gpt.files import is_locked
from mlx_gpt.parse import read_toml
from mlx_gpt.watch.compare import EVALUATION, UPDATE, NotEvaluated, Record, curve_of, dotted
from mlx_gpt.watch.folders import METRICS, SETTINGS, find_runs
from mlx_gpt.watch.health import Health
from mlx_gpt.watch.progress import BEST, Progress, kind_of, step_of
from mlx_gpt.watch.series import Series
from mlx_gpt.watch.tail import CHUNK, Tail, has_numbers, number

MAX_RUNS = 2000
MAX_SAMPLES, MAX_SAMPLE = 100, 4000  # samples of a run that are kept, and characters of each
MAX_ALERTS = 100
TOML_COST = 16  # time that it takes to parse a byte of TOML, compared with a byte of reports
# A run that trains counts as silent if it made no report for this many times its longest report, and for at least QUIET
# seconds. Reports of updates are as long as the update; an evaluation may take minutes.
PATIENCE, QUIET = 3, 60.0


class Run:
    """A run folder.

    Args:
        name: The path of the folder, as it is shown.
        folder: The path of the folder.

    Attributes:
        stamp: The stamp of the last change; see Runs.refresh().
        series: The kinds "step" and "eval" -> their curves.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.tail, self.stamp, self.settings = Tail(folder / METRICS), 0, {}
        self._settings_seen: tuple[int, int, int] | None = None  # time, size and inode of run.toml
        self._settings_due, self._settings_note, self._settings_stamp = False, "", 0
        self._is_locked = False
        self._start(0)

    def _start(self, stamp: int) -> None:
        """Forgets all reports."""
        self.started = stamp
        self.series = {"step": Series(), "eval": Series()}
        self.samples: deque[dict] = deque(maxlen=MAX_SAMPLES)
        self.alerts: deque[dict] = deque(maxlen=MAX_ALERTS)
        self._health = Health(self.settings, self.name)
        self._progress, self._end = Progress(), None
        self._num_samples, self._num_alerts = 0, 0
        self._longest, self._num_damaged, self._num_back, self._latest_step = 0.0, 0, 0, -1

    @property
    def waits(self) -> bool:
        """Whether the last look() found something to read."""
        return bool(self.tail.unread or self._settings_due)

    def look(self, stamp: int) -> None:
        """Looks for new reports, changed settings and the lock. Reads the end of a file of which nothing was read."""
        before = self.tail.exists, self._is_locked
        self.tail.look()
        self._is_locked = is_locked(self.folder)
        if before != (self.tail.exists, self._is_locked):
            self.stamp = stamp
        if self._end is None and not self._progress.last and self.tail.unread:
            self._end = Progress()
            for report in self.tail.end():
                self._end.add(report)
        try:
            status = os.lstat(self.folder / SETTINGS)
        except OSError:
            return
        seen = status.st_mtime_ns, status.st_size, status.st_ino
        if seen != self._settings_seen and stat.S_ISREG(status.st_mode):
            self._settings_seen, self._settings_due = seen, True

    def read(self, max_bytes: int, stamp: int) -> int:
        """Reads changed settings and new reports.

        Returns:
            The number of bytes read. At most `max_bytes` of reports are read. Each byte of settings counts TOML_COST
            times.
        """
        cost = self._read_settings(stamp) if self._settings_due else 0
        batch = self.tail.read(max_bytes)
        if batch.restarted:
            self._start(stamp)
        self._num_damaged += batch.num_damaged
        for report in batch.reports:
            self._add(report, stamp)
        if batch.restarted or batch.num_bytes:
            self.stamp = stamp
        return cost + batch.num_bytes

    def _read_settings(self, stamp: int) -> int:
        """Reads run.toml, and returns the cost."""
        self._settings_due, self._settings_note = False, ""
        self.stamp = self._settings_stamp = stamp
        try:
            tables = current_names(read_toml(self.folder / SETTINGS))
            self.settings = {name: values for name, values in tables.items() if isinstance(values, dict)}
        except UserError as error:
            self._settings_note = f"settings cannot be read: {error}"
        if not self._progress.last:
            self._health = Health(self.settings, self.name)
        return TOML_COST * self._settings_seen[1]

    def _add(self, report: dict[str, Any], stamp: int) -> None:
        kind, step, values = kind_of(report), step_of(report), self._progress.add(report)
        if kind == "step":
            self._num_back += step < self._latest_step
            self._latest_step = step
        if kind in self.series:
            self.series[kind].add(step, {"step": float(step), **values}, stamp)
            self._longest = max(self._longest, values.get("seconds", 0.0))
        if kind == "sample" and isinstance(report.get("text"), str):
            self.samples.append({"step": step, "text": report["text"][:MAX_SAMPLE]})
            self._num_samples += 1
        self._add_alerts(kind, report)

    def _add_alerts(self, kind: str, report: dict[str, Any]) -> None:
        """Keeps the alerts of the file, or for a run of a version that records none, those of the health checks."""
        if kind == "step" and "peak_memory" in report:
            self._health = None
        if kind == "alert":
            found = [report]
        else:
            found = [asdict(alert) for alert in self._health.update({"step": 0} | report)] if self._health else []
        self.alerts.extend(map(_alert, found))
        self._num_alerts += len(found)

    def summary(self) -> dict[str, Any]:
        """The progress of the run, as values that JSON can represent. Values that are not known are None.

        Until all reports were read once, the progress is that of the reports at the end of the file.
        """
        if not self.tail.unread:
            self._end = None
        progress = self._end or self._progress
        return progress.summary(self.settings) | {
            "run": self.name,
            "stamp": self.stamp,
            "started": self.started,
            "exists": self.tail.exists,
            "state": progress.state(self._is_locked) if self.tail.exists else "gone",
            "unread": self.tail.unread,
            "mtime": self.tail.mtime,
            "quiet_after": max(QUIET, PATIENCE * self._longest),
            "alerts": self._num_alerts,
            "samples": self._num_samples,
            "settings_stamp": self._settings_stamp,
            "notes": list(self._notes()),
        }

    def _notes(self) -> Iterator[str]:
        """What a reader of the curves must know about the files."""
        if not self.tail.exists:
            yield "its metrics.jsonl was deleted, moved or cannot be read; what was read before is shown"
        if self._settings_note:
            yield self._settings_note
        if self._num_damaged:
            yield f"{self._num_damaged:,} damaged lines of metrics.jsonl were skipped"
        if self._num_back:
            yield f"steps go back {self._num_back:,} times; more than one process may have written metrics.jsonl"
        if error := self._progress.last.get("save", {}).get("error"):
            yield f"the last checkpoint was not saved: {error}"
        if failure := self._progress.last.get("failure"):
            yield f"the process ended with an error: {failure.get('error')}: {failure.get('message')}"
        if any(series.num_dropped for series in self.series.values()):
            yield "some fields are not shown, because there are too many"

    def record(self) -> Record:
        """What `mlxgpt compare` compares, from the curves. A bin of several evaluations counts as its lowest loss.

        Raises:
            NotEvaluated: The run has no evaluation.
        """
        fields = self.series["eval"].columns()["fields"]
        names = ("step", *BEST)
        lows = [fields.get(name, 2 * [[None] * len(self.series["eval"])])[1] for name in names]
        rows = [_whole(dict(zip(names, row, strict=True))) for row in zip(*lows, strict=True)]
        evaluations = [row for row in rows if has_numbers(row, EVALUATION)]
        if not evaluations:
            raise NotEvaluated(f"{self.name}: the run was not evaluated yet")
        seconds = self.series["step"].columns()["fields"].get("seconds", [[]])[0]
        known = [value for value in seconds if value]
        last = self._progress.last.get("step", {})
        return Record(
            name=self.name,
            settings=dotted(self.settings),
            evaluations=evaluations,
            last=_whole(last) if has_numbers(last, UPDATE) and last["step"] > 0 else None,
            seconds=statistics.median(known) if known else None,
            curve=curve_of(self.series["step"]),
        )

    def points(self, after: int = 0) -> dict[str, Any]:
        """The curves, or what has changed of them.

        Args:
            after: A stamp; bins that have not changed since are left out. 0 is all bins.

        Returns:
            A dictionary with the keys `stamp`, `whole` and `series`. If `whole` is True, all bins are contained, and
            earlier ones are void. `series` maps "step" and "eval" to Series.columns().
        """
        whole = after < max(self.started, *(series.rebuilt for series in self.series.values())) or after == 0
        found = {kind: series.columns(0 if whole else after) for kind, series in self.series.items()}
        return {"run": self.name, "stamp": self.stamp, "whole": whole, "series": found}


class Runs:
    """All runs at or below the given paths.

    A run is a folder with a file metrics.jsonl. Symbolic links below the given paths are not followed, so nothing
    outside of them is read.

    Args:
        paths: Run folders, or folders that contain run folders. They need not exist yet.

    Attributes:
        stamp: A number that grows with every refresh.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths, self.stamp = list(paths), 0
        self._runs: dict[str, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def get(self, name: str) -> Run | None:
        """The run with this name, or None."""
        return self._runs.get(name)

    @property
    def unread(self) -> int:
        """The number of bytes that the last refresh left unread."""
        return sum(run.tail.unread for run in self)

    def refresh(self, max_bytes: int, first: Container[str] = ()) -> None:
        """Finds new runs, and reads new reports.

        The runs named in `first` are read before the others, and otherwise those that changed last. Each of them gets
        at most CHUNK bytes in turn, so that a long file delays the others little.

        Args:
            max_bytes: Number of bytes after which no further run is read; see Run.read().
            first: Names of the runs that are shown.
        """
        self.stamp += 1
        for path in self.paths:
            for folder in find_runs(path, marks=(METRICS,)):
                name = os.fsencode(folder).decode("utf-8", "replace")
                if name not in self._runs and len(self._runs) < MAX_RUNS:
                    self._runs[name] = Run(name, folder)
        for run in self:
            run.look(self.stamp)
        order = sorted((run for run in self if run.waits), key=lambda run: (run.name not in first, -run.tail.mtime))
        waiting = deque(order)
        while waiting and max_bytes > 0:
            run = waiting.popleft()
            count = run.read(min(CHUNK, max_bytes), self.stamp)
            max_bytes -= count
            if count and run.waits:
                waiting.append(run)


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which whole numbers are integers, as in metrics.jsonl."""
    return {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in row.items()}


def _alert(found: Mapping[str, Any]) -> dict[str, Any]:
    """An alert with the fields that the page shows. Values of another type are replaced."""
    texts = {name: str(found.get(name, ""))[:1000] for name in ("kind", "evidence", "advice")}
    return texts | {name: int(number(found.get(name)) or 0) for name in ("step", "since")}
