"""Finds what is wrong with a run from its reports: it diverges, stalls, overfits, needs too much memory, and so on.

The training process, the terminal panel and readers of metrics.jsonl use the same detectors. Each is a row of
DETECTORS. `Health` passes the reports to them and decides when a finding is a new alert.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from mlx_gpt.train.reports import Alert as Alert
from mlx_gpt.watch.detectors import loss, machine, parts, text
from mlx_gpt.watch.detectors.protocol import Detector, Finding, Settings, number

DETECTORS: tuple[type[Detector], ...] = (
    loss.Diverging,
    loss.Plateau,
    loss.Overfitting,
    loss.TooCertain,
    machine.Throughput,
    machine.Memory,
    machine.Disk,
    machine.OutOfMemory,
    text.Repetition,
    text.OneToken,
    text.Diversity,
    parts.Experts,
    parts.Streams,
    parts.Trits,
)

STALL_STEPS = 20  # times the usual duration of an update without a report
STALL_GAP = 3  # times the longest time between two updates so far, which includes evaluations, samples and saves
STALL_SECONDS = 60.0  # the least time without a report; a save to a slow disk takes some seconds
FIRST = 10  # factor of that time if the first evaluation or sample is due: its duration is not known
FEWEST = 10  # updates before a run can be stalled; the first one compiles for a while
ENDS = ("stop", "failure")


class Health:
    """Reads the reports of a run in order, and returns an alert when something begins to be wrong.

    The same thing is reported once. It is reported again if it was gone in between, or if it begins after a resume.

    Args:
        settings: The settings of the run as nested dictionaries, such as {"train": {"iters": 500}}; may be empty.
        run: The path of the run folder, which stands in the commands that alerts recommend.

    Example:
        health = Health(read_toml(folder / "run.toml"))
        alerts = [alert for line in read_metrics(folder / "metrics.jsonl") for alert in health.update(line)]
    """

    def __init__(self, settings: Mapping[str, Any], run: str = "RUN"):
        self._settings = Settings(settings, run)
        watched = [_Watched(detector(self._settings)) for detector in DETECTORS]
        self._memory = next(w.detector for w in watched if isinstance(w.detector, machine.Memory))
        self._readers: dict[str, list[_Watched]] = {}  # kind of a report -> the detectors that read it
        for each in watched:
            for kind in each.detector.reports:
                self._readers.setdefault(kind, []).append(each)
        self._pace = _Pace(self._settings)
        self._step, self._ended = 0, False
        self._told: set[str] = set()  # the kinds of the alerts of check() since the last report

    def update(self, report: Mapping[str, Any]) -> list[Alert]:
        """Reads the next report, an object of metrics.jsonl, and returns the new alerts.

        Lines of mlxgpt 0.1, and lines with fields that are missing or have another type, are read as far as possible.
        """
        kind = _kind(report)
        if kind == "alert" or (step := number(report, "step")) is None:
            return []
        self._step, self._ended = int(step), kind in ENDS
        self._told.clear()
        self._pace.update(kind, report)
        return [alert for each in self._readers.get(kind, ()) if (alert := each.update(kind, report))]

    def check(self, idle: float, running: bool = True) -> list[Alert]:
        """Returns alerts that no report can give: the run is stalled, or its process is gone.

        Args:
            idle: Seconds since the last report arrived, for example since metrics.jsonl changed.
            running: Whether the process of the run exists.
        """
        found = None
        if self._ended:
            return []
        if not running:
            kind, found = "out-of-memory", self._killed()
        elif idle > (limit := self._pace.limit):
            kind, found = "stalled", self._stalled(idle, limit)
        if found is None or kind in self._told:
            return []
        self._told.add(kind)
        return [_alert(kind, self._step, found)]

    def _stalled(self, idle: float, limit: float) -> Finding:
        return Finding(
            since=self._step,
            evidence=f"no report for {idle:,.0f} s; {self._pace.seconds:.3g} s is usual for an update, and "
            f"{limit:,.0f} s is the most that is expected here",
            advice="look at the process and its disk; end it with Ctrl-C or kill, and continue with "
            + self._settings.resume(""),
        )

    def _killed(self) -> Finding | None:
        share = self._memory.share
        if share is None or share < machine.NEAR:
            return None
        return Finding(
            since=self._step,
            evidence=f"the process ended without a report, and used {share:.0%} of its memory limit",
            advice=machine.lighter(self._settings),
        )


class _Watched:
    """A detector, and whether its finding was already reported."""

    def __init__(self, detector: Detector):
        self.detector = detector
        self._quiet = detector.clear  # reports since the last finding

    def update(self, kind: str, report: Mapping[str, Any]) -> Alert | None:
        if kind == "start":  # a process that resumes the run begins anew
            self._quiet = self.detector.clear
        found = self.detector(kind, report)
        if found is None:
            self._quiet += 1
            return None
        is_new, self._quiet = self._quiet >= self.detector.clear, 0
        return _alert(self.detector.kind, int(report["step"]), found) if is_new else None


class _Pace:
    """The usual time between the reports of a run."""

    def __init__(self, settings: Settings):
        self._every, self._iters = settings.get("train.eval_every", 0), settings.get("train.iters", 0)
        self._seconds: deque[float] = deque(maxlen=20)
        self._last = self._longest = self._step = 0.0
        self._count, self._kind, self._seen = 0, "", set()

    def update(self, kind: str, report: Mapping[str, Any]) -> None:
        if kind == "start":  # a new process, whose first update compiles
            self._count, self._longest = 0, 0.0
        self._kind = kind
        self._seen.add(kind)
        self._iters = number(report, "iters") or self._iters  # of a plan
        elapsed, seconds = number(report, "elapsed"), number(report, "seconds")
        if kind != "step" or elapsed is None or seconds is None:
            return
        self._count, self._step = self._count + 1, report["step"]
        if self._count > 1:
            self._seconds.append(seconds)
            self._longest = max(self._longest, elapsed - self._last)
        self._last = elapsed

    @property
    def seconds(self) -> float:
        """The usual seconds of an update."""
        return statistics.median(self._seconds)

    @property
    def limit(self) -> float:
        """The most seconds without a report that are expected now."""
        if self._count < FEWEST:
            return math.inf
        is_due = self._step >= self._iters > 0 or (self._every and self._step % self._every == 0)
        is_first = (is_due and "eval" not in self._seen) or (self._kind == "sampledue" and "sample" not in self._seen)
        return max(STALL_STEPS * self.seconds, STALL_GAP * self._longest, STALL_SECONDS) * (FIRST if is_first else 1)


def _alert(kind: str, step: int, found: Finding) -> Alert:
    return Alert(kind=kind, step=step, since=found.since, evidence=found.evidence, advice=found.advice)


def _kind(report: Mapping[str, Any]) -> Any:
    """The kind of a report. Those of mlxgpt 0.1 do not name it."""
    return report.get("report") or ("eval" if "val_loss" in report else "step" if "grad_norm" in report else None)
