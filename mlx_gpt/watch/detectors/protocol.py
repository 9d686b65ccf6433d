"""The protocol of detectors of ill runs, and how they read reports and settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Line = Mapping[str, Any]  # a line of metrics.jsonl


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a detector has found.

    Attributes:
        since: The step since which it has been so.
        evidence: What was measured, with numbers.
        advice: What the user can do: a command or a setting.
    """

    since: int
    evidence: str
    advice: str


class Settings:
    """The settings of a run. A setting that is missing, or has another type than its default, has the default.

    Args:
        tables: The settings as nested dictionaries, such as {"train": {"iters": 500}}; may be empty.

        run: The path of the run folder, for commands.

    Attributes:
        is_rl: Whether the run learns from rewards.
    """

    def __init__(self, tables: Mapping[str, Any], run: str):
        self._tables, self._run = tables, run
        self.is_rl = self.get("train.objective", "cross-entropy") != "cross-entropy"

    def get(self, key: str, default):
        """Returns the value of a dotted key, such as "train.iters"."""
        table, _, name = key.partition(".")
        values = self._tables.get(table)
        value = values.get(name, default) if isinstance(values, Mapping) else default
        kinds = (int, float) if type(default) in (int, float) else (type(default),)
        return value if type(value) in kinds else default

    def resume(self, options: str, checkpoint: str = "") -> str:
        """Returns the command that continues the run, or a checkpoint in its folder, with these options."""
        path = f"{self._run}/{checkpoint}" if checkpoint else self._run
        return f"mlxgpt {'rl' if self.is_rl else 'train'} --resume {path} {options}".rstrip()


class Detector(Protocol):
    """Recognizes one thing that can be wrong with a run.

    Attributes:
        kind: The kind of its alerts.
        reports: The kinds of the reports that it reads.
        clear: Number of these reports in a row without a finding after which a finding is a new alert.

    Args:
        settings: The settings of the run.
    """

    kind: str
    reports: tuple[str, ...]
    clear: int

    def __init__(self, settings: Settings): ...

    def __call__(self, kind: str, line: Line) -> Finding | None:
        """Reads the next report.

        Args:
            kind: The kind of the report.
            line: The report. Its `step` is a number. Every other field may be missing or have any type.

        Returns:
            What is wrong at this report, or None. The result is the same as long as it is wrong.
        """
        ...


def number(line: Line, name: str) -> float | None:
    """Returns a field that is a finite number, and None for any other value."""
    value = line.get(name)
    return value if type(value) in (int, float) and math.isfinite(value) else None
