"""The runs below some folders, as their files describe them: progress, series, samples, alerts and settings.

Nothing here writes a file or takes a lock, so training does not notice that a run is watched. Each refresh reads at
most a given number of bytes, and only bytes that are new.
"""

import os
import stat
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import current_names
from mlx_gpt.errors import UserError
from mlx_gpt.parse import read_toml
from mlx_gpt.watch.compare import EVALUATION, UPDATE, NotEvaluated, Record, curve_of, dotted
from mlx_gpt.watch.health import Health
from mlx_gpt.watch.series import Series
from mlx_gpt.watch.tail import CHUNK, Tail, has_numbers, number

METRICS, SETTINGS = "metrics.jsonl", "run.toml"
MAX_DEPTH = 3  # folders between a given folder and a run
MAX_RUNS = 2000
MAX_SAMPLES, MAX_SAMPLE = 100, 4000  # samples of a run that are kept, and characters of each
MAX_ALERTS = 100
TOML_COST = 16  # time that it takes to parse a byte of TOML, compared with a byte of reports
RECENT = 20  # updates over which the speed is averaged
# A run without a stop report counts as training until it was silent for this many times its longest report, and for at
# least QUIET seconds. Reports of updates are as long as the update; an evaluation may take minutes.
PATIENCE, QUIET = 3, 60.0
MAX_ITERS = 1 << 31  # a larger number of updates means that the run has no fixed length
# Fields of reports that are no curves: they are counts, repeat another field, or are shown elsewhere.
NO_CURVES = {"report", "step", "skipped", "best_step", "best_loss", "bad_evals", "lr_cuts", "num_lr_cuts"}
NO_CURVES |= {"eval_tokens", "raw_loss", "memory_limit"}


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
        self._start(0)

    def _start(self, stamp: int) -> None:
        """Forgets all reports."""
        self.started = stamp
        self.series = {"step": Series(), "eval": Series()}
        self.samples: deque[dict] = deque(maxlen=MAX_SAMPLES)
        self.alerts: deque[dict] = deque(maxlen=MAX_ALERTS)
        self._health = Health(self.settings, self.name)
        self._last: dict[str, dict] = {}  # kind of report -> the last one
        self._best: dict | None = None
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._speeds: deque[float] = deque(maxlen=RECENT)
        self._num_samples, self._num_alerts = 0, 0
        self._longest, self._num_damaged, self._num_back, self._latest_step = 0.0, 0, 0, -1

    @property
    def stop(self) -> dict | None:
        """The stop report, if the run has made no update since."""
        return self._last.get("stop")

    @property
    def waits(self) -> bool:
        """Whether the last look() found something to read."""
        return bool(self.tail.unread or self._settings_due)

    def look(self, stamp: int) -> None:
        """Looks for new reports and changed settings, without reading them."""
        before = self.tail.exists
        self.tail.look()
        if before != self.tail.exists:
            self.stamp = stamp
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
        if not self._last:
            self._health = Health(self.settings, self.name)
        return TOML_COST * self._settings_seen[1]

    def _add(self, report: dict[str, Any], stamp: int) -> None:
        kind, step = kind_of(report), int(number(report.get("step", 0)) or 0)
        values = curves_of(report)
        previous = self._last.get(kind)
        if kind == "step":
            self._last.pop("stop", None)
            self._last.pop("failure", None)
            self._num_back += step < self._latest_step
            self._latest_step = step
            self._add_speed(values, previous)
        if kind == "eval" and "val_loss" in values:
            if self._best is None or values["val_loss"] < self._best["val_loss"]:
                self._best = {name: values.get(name) for name in BEST} | {"step": step}
        if kind in self.series:
            self.series[kind].add(step, {"step": float(step), **values}, stamp)
            self._longest = max(self._longest, values.get("seconds", 0.0))
        if kind == "sample" and isinstance(report.get("text"), str):
            self.samples.append({"step": step, "text": report["text"][:MAX_SAMPLE]})
            self._num_samples += 1
        self._add_alerts(kind, report)
        if kind in KEPT:
            texts = {name: str(report[name])[:1000] for name in TEXTS if report.get(name)}
            self._last[kind] = {"step": step, **values, **texts}

    def _add_speed(self, values: dict[str, float], previous: dict | None) -> None:
        """Adds tokens_per_second to the values of an update, and updates the recent speed."""
        seconds, tokens = values.get("seconds", 0.0), values.get("tokens")
        if seconds > 0 and previous and tokens is not None and tokens > previous.get("tokens", tokens):
            values["tokens_per_second"] = (tokens - previous["tokens"]) / seconds
            self._speeds.append(values["tokens_per_second"])
            self._seconds.append(seconds)

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
        """The progress of the run, as values that JSON can represent. Values that are not known are None."""
        step, evaluation = self._last.get("step", {}), self._last.get("eval", {})
        newest = max((step, evaluation, self.stop or {}), key=lambda report: report.get("step", -1))
        stop = self.stop or {}
        iters, pace = self._iters(), _mean(self._seconds)
        left = iters - newest.get("step", 0) if iters else None
        return {
            "run": self.name,
            "stamp": self.stamp,
            "started": self.started,
            "exists": self.tail.exists,
            "unread": self.tail.unread,
            "mtime": self.tail.mtime,
            "quiet_after": max(QUIET, PATIENCE * self._longest),
            "reason": stop.get("reason", "failure" if "failure" in self._last else None),
            "step": newest.get("step"),
            "iters": iters,
            "tokens": newest.get("tokens"),
            "elapsed": newest.get("elapsed"),
            "loss": step.get("loss"),
            "val_loss": evaluation.get("val_loss"),
            "best": self._best,
            "seconds_per_step": pace,
            "tokens_per_second": _mean(self._speeds),
            "eta": None if self.stop or left is None or pace is None else max(left, 0) * pace,
            "memory": stop.get("peak_memory", step.get("peak_memory")),
            "alerts": self._num_alerts,
            "samples": self._num_samples,
            "settings_stamp": self._settings_stamp,
            "notes": list(self._notes()),
        }

    def _iters(self) -> int | None:
        table = self.settings.get("train", {})
        plan = self._last.get("plan", {})
        iters = plan.get("iters", number(table.get("iters")))
        return int(iters) if iters is not None and 0 < iters < MAX_ITERS else None

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
        if error := self._last.get("save", {}).get("error"):
            yield f"the last checkpoint was not saved: {error}"
        if failure := self._last.get("failure"):
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
        whole = [[int(v) if v is not None and v.is_integer() else v for v in column] for column in lows]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*whole, strict=True)]
        evaluations = [row for row in rows if has_numbers(row, EVALUATION)]
        if not evaluations:
            raise NotEvaluated(f"{self.name}: the run was not evaluated yet")
        seconds = self.series["step"].columns()["fields"].get("seconds", [[]])[0]
        known = [value for value in seconds if value]
        last = self._last.get("step", {})
        return Record(
            name=self.name,
            settings=dotted(self.settings),
            evaluations=evaluations,
            last=last if has_numbers(last, UPDATE) and last["step"] > 0 else None,
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


KEPT = ("plan", "start", "step", "eval", "save", "stop", "failure")  # reports of which the last one is kept
TEXTS = ("reason", "error", "message")  # fields of stop, save and failure reports
BEST = ("val_loss", "val_ppl", "val_bits_per_byte", "tokens", "elapsed")  # fields of the best evaluation


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

    def refresh(self, max_bytes: int) -> None:
        """Finds new runs, and reads new reports.

        The runs that changed last are read first. Each of them gets at most CHUNK bytes in turn, so that a long file
        delays the others little.

        Args:
            max_bytes: Number of bytes after which no further run is read; see Run.read().
        """
        self.stamp += 1
        for path in self.paths:
            for folder in _run_folders(path, MAX_DEPTH):
                name = os.fsencode(folder).decode("utf-8", "replace")
                if name not in self._runs and len(self._runs) < MAX_RUNS:
                    self._runs[name] = Run(name, folder)
        for run in self:
            run.look(self.stamp)
        waiting = deque(sorted((run for run in self if run.waits), key=lambda run: -run.tail.mtime))
        while waiting and max_bytes > 0:
            run = waiting.popleft()
            count = run.read(min(CHUNK, max_bytes), self.stamp)
            max_bytes -= count
            if count and run.waits:
                waiting.append(run)


def kind_of(report: Mapping[str, Any]) -> str:
    """The kind of a report. Files of mlxgpt 0.1 have no field `report`."""
    kind = report.get("report")
    if isinstance(kind, str):
        return kind
    return "eval" if "val_loss" in report else "step" if "grad_norm" in report else ""


def curves_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a report that are curves. `{"rule_lrs": {"muon": 0.02}}` gives `rule_lrs.muon`."""
    found: dict[str, float] = {}
    for name, value in report.items():
        if name in NO_CURVES:
            continue
        for inner, part in value.items() if isinstance(value, dict) else [("", value)]:
            if (finite := number(part)) is not None:
                found[f"{name}.{inner}" if inner else name] = finite
    return found


def _run_folders(path: Path, depth: int) -> Iterator[Path]:
    """Yields `path` if it is a run, and the runs below it, in at most `depth` levels."""
    try:
        with os.scandir(path) as entries:
            found = sorted((entry.name, _kind(entry)) for entry in entries)
    except OSError:
        return
    if (METRICS, "file") in found:
        yield path
    if depth:
        for name, kind in found:
            if kind == "folder" and not name.startswith("."):
                yield from _run_folders(path / name, depth - 1)


def _kind(entry: os.DirEntry) -> str:
    if entry.is_file(follow_symlinks=False):
        return "file"
    return "folder" if entry.is_dir(follow_symlinks=False) else ""


def _alert(found: Mapping[str, Any]) -> dict[str, Any]:
    """An alert with the fields that the page shows. Values of another type are replaced."""
    texts = {name: str(found.get(name, ""))[:1000] for name in ("kind", "evidence", "advice")}
    return texts | {name: int(number(found.get(name)) or 0) for name in ("step", "since")}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
