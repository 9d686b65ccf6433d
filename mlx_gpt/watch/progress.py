"""The progress and the state of a run, from its reports and the lock of its folder.

`mlxgpt runs` and the dashboard both use it, so that they say the same of a run.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_gpt.watch.tail import number

# StopReport.reason -> the state of the run.
STATES = {"iters": "finished", "minutes": "finished", "patience": "finished", "signal": "stopped", "ranks": "stopped"}
STATES |= {"diverged": "diverged"}
BEGINS = ("start", "plan", "step")  # reports that are only made before the end of a process
KEPT = ("plan", "start", "step", "eval", "save", "stop", "failure")  # reports of which the last one is kept
TEXTS = ("reason", "error", "message")  # fields of stop, save and failure reports
BEST = ("val_loss", "val_ppl", "val_bits_per_byte", "tokens", "elapsed")  # fields of the best evaluation
RECENT = 20  # updates over which the speed is averaged
MAX_ITERS = 1 << 31  # a larger number of updates means that the run has no fixed length
# Fields of reports that are no curves: they are counts, repeat another field, or are shown elsewhere.
NO_CURVES = {"report", "step", "skipped", "best_step", "best_loss", "bad_evals", "lr_cuts", "num_lr_cuts"}
NO_CURVES |= {"eval_tokens", "raw_loss", "memory_limit"}


class Progress:
    """What the reports of a run tell of its progress. Updates may be left out; see Tail.

    Attributes:
        last: Kind of report -> the numbers and texts of the last one.
        best: The evaluation with the lowest validation loss; None without an evaluation. Only `val_loss` and `step` are
            known if only a later report names it.
        alert_kinds: Kinds of the alerts, in order, each once.
    """

    def __init__(self):
        self.last: dict[str, dict[str, Any]] = {}
        self.best: dict[str, Any] | None = None
        self.alert_kinds: dict[str, None] = {}
        self._has_kinds = False
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._speeds: deque[float] = deque(maxlen=RECENT)

    def add(self, report: Mapping[str, Any]) -> dict[str, float]:
        """Reads the next report.

        Returns:
            The numbers of the report that are curves. Those of an update have `tokens_per_second`, if it is known.
        """
        kind, step, values = kind_of(report), step_of(report), curves_of(report)
        self._has_kinds |= isinstance(report.get("report"), str)
        if kind in BEGINS:
            ended = [self.last.pop(end, None) for end in ("stop", "failure")]
            if kind == "start" or any(ended):  # a run that is resumed may have another length, which is in its settings
                self.last.pop("plan", None)
        if kind == "step":
            self._add_speed(step, values)
        elif kind == "alert":
            self.alert_kinds[str(report.get("kind"))] = None
        self._add_best(kind, step, values, report)
        if kind in KEPT:
            texts = {name: str(report[name])[:1000] for name in TEXTS if report.get(name)}
            self.last[kind] = {"step": step, **values, **texts}
        return values

    def _add_speed(self, step: int, values: dict[str, float]) -> None:
        seconds, tokens, previous = values.get("seconds", 0.0), values.get("tokens"), self.last.get("step", {})
        if seconds > 0 and tokens is not None and previous.get("step") == step - 1:
            new = tokens - previous.get("tokens", tokens)
            if new > 0 and (speed := number(new / seconds)):
                values["tokens_per_second"] = speed
                self._speeds.append(speed)
                self._seconds.append(seconds)

    def _add_best(self, kind: str, step: int, values: Mapping[str, float], report: Mapping[str, Any]) -> None:
        lowest = self.best["val_loss"] if self.best else float("inf")
        if kind == "eval" and values.get("val_loss", lowest) < lowest:
            self.best = {name: values.get(name) for name in BEST} | {"step": step}
            lowest = values["val_loss"]
        told = number(report.get("best_loss"))
        if kind in ("eval", "stop") and told is not None and told < lowest:
            self.best = dict.fromkeys(BEST) | {"val_loss": told, "step": int(number(report.get("best_step")) or 0)}

    def state(self, is_locked: bool) -> str:
        """The state of the run.

        Args:
            is_locked: Whether a process has the lock of the run folder.

        Returns:
            "training" (a process has the lock), "finished", "stopped" (by a signal), "diverged", "failed" (by an
            error), "killed" (the process ended without a report), or "unknown" (no report tells it, as in files of
            mlxgpt 0.1).
        """
        if is_locked:
            return "training"
        if "stop" in self.last:
            return STATES.get(self.last["stop"].get("reason"), "unknown")
        if "failure" in self.last:
            return "failed"
        return "killed" if self._has_kinds else "unknown"

    def summary(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, as values that JSON can represent. Values that are not known are None.

        Args:
            settings: The tables of run.toml.
        """
        step, evaluation, stop = (self.last.get(kind, {}) for kind in ("step", "eval", "stop"))
        newest = max((step, evaluation, stop), key=lambda report: report.get("step", -1))
        iters, pace = self._iters(settings), _mean(self._seconds)
        left = iters - newest.get("step", 0) if iters else None
        return {
            "reason": stop.get("reason", "failure" if "failure" in self.last else None),
            "step": newest.get("step"),
            "iters": iters,
            "tokens": newest.get("tokens"),
            "elapsed": newest.get("elapsed"),
            "loss": step.get("loss"),
            "val_loss": evaluation.get("val_loss"),
            "best": self.best,
            "seconds_per_step": pace,
            "tokens_per_second": _mean(self._speeds),
            "eta": None if stop or left is None or pace is None else max(left, 0) * pace,
            "memory": stop.get("peak_memory", step.get("peak_memory")),
        }

    def _iters(self, settings: Mapping[str, Any]) -> int | None:
        table = settings.get("train")
        named = number(table.get("iters")) if isinstance(table, dict) else None
        iters = self.last.get("plan", {}).get("iters", named)
        return int(iters) if iters is not None and 0 < iters < MAX_ITERS else None


def kind_of(report: Mapping[str, Any]) -> str:
    """The kind of a report. Files of mlxgpt 0.1 have no field `report`."""
    kind = report.get("report")
    if isinstance(kind, str):
        return kind
    return "eval" if "val_loss" in report else "step" if "grad_norm" in report else ""


def step_of(report: Mapping[str, Any]) -> int:
    """The step of a report; 0 if it has none."""
    return int(number(report.get("step", 0)) or 0)


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


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
