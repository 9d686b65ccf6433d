"""What the samples of a model show together: totals, and the report as JSON."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from typing import Any

from mlx_gpt.code.evaluate import Sample
from mlx_gpt.code.settings import Settings
from mlx_gpt.code.statistics import mean, pass_at_k, wilson

MAX_ERRORS, MAX_EXAMPLES, MAX_EXAMPLE = 10, 3, 200  # in the fields of the older report; the last in characters
# Field of the totals -> the property of a sample; None if it is not known of a sample.
SHARES = {
    "parses": lambda sample: sample.findings.parses,
    "compiles": lambda sample: sample.findings.compiles,
    "defines": lambda sample: sample.defines,
    "valid": lambda sample: sample.valid,
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of one model, ordered by problem.

    Attributes:
        samples: At least one sample.
        seconds: Duration of the generation of all samples.
        executed: Whether the tests were executed.
        ks: The values of k for which pass@k is estimated.
    """

    samples: Sequence[Sample]
    seconds: float
    executed: bool
    ks: tuple[int, ...]

    @cached_property
    def by_problem(self) -> list[list[Sample]]:
        """The samples of each problem."""
        return [list(group) for _, group in groupby(self.samples, lambda sample: sample.draft.problem.id)]

    @cached_property
    def tested(self) -> list[list[Sample]]:
        """The samples of each problem whose tests were executed."""
        return [group for group in self.by_problem if self.executed and group[0].draft.problem.tests]

    def totals(self) -> dict[str, Any]:
        """Returns the numbers that describe all samples, as JSON. Shares are from 0 to 1, with 95 % intervals."""
        num_tokens = sum(sample.draft.num_tokens for sample in self.samples)
        tested = [sample for group in self.tested for sample in group]
        failed = [sample for sample in tested if sample.outcome and not sample.passed]
        distinct = sum(len({sample.program for sample in group}) for group in self.by_problem)
        return {
            "samples": len(self.samples),
            **{name: _share([value(sample) for sample in self.samples]) for name, value in SHARES.items()},
            "passes": _share([sample.passed for sample in tested]),
            "pass_at_k": {str(k): self._pass_at(k) for k in self.ks},
            "distinct": distinct / len(self.samples),
            "ended": _share([sample.draft.finish_reason == "stop" for sample in self.samples]),
            "errors": dict(Counter(filter(None, map(error_class, self.samples))).most_common()),
            "outcomes": dict(Counter(sample.outcome.kind for sample in tested if sample.outcome).most_common()),
            "failures": dict(Counter(sample.outcome.error for sample in failed).most_common()),
            **self._means(),
            "tokens": num_tokens,
            "tokens_per_second": num_tokens / self.seconds if self.seconds else None,
        }

    def _means(self) -> dict[str, float | None]:
        names = ("lines", "functions", "complexity", "nesting", "repetition", "unused", "unreachable", "warnings")
        return {f"avg_{name}": mean([getattr(sample.findings, name) for sample in self.samples]) for name in names}

    def _pass_at(self, k: int) -> dict[str, Any] | None:
        """Returns pass@k over the problems with at least k samples, and the problems with fewer. None without tests."""
        if not self.tested:
            return None
        enough = [group for group in self.tested if len(group) >= k]
        left_out = [group[0].draft.problem.id for group in self.tested if len(group) < k]
        value = mean([pass_at_k(len(group), sum(s.passed for s in group), k) for group in enough])
        low, high = (None, None) if value is None else wilson(value, len(enough))
        return {"value": value, "low": low, "high": high, "problems": len(enough), "left_out": left_out}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an evaluation.

    Attributes:
        settings: The settings.
        step: The step of the checkpoint.
        model: The samples of the checkpoint.
        baselines: The samples of other models by name.
        left_out: The prompts that were not evaluated, and why, by the names of their problems.
        created: Time of the evaluation, as in RFC 3339.
    """

    settings: Settings
    step: int
    model: Samples
    baselines: dict[str, Samples]
    left_out: dict[str, str]
    created: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def summary(self, checkpoint: str) -> dict[str, Any]:
        """Returns the report without the samples, as JSON.

        Args:
            checkpoint: The path of the checkpoint.
        """
        totals = self.model.totals()
        share, errors = (
            totals["compiles"]["share"],
            Counter(filter(None, (s.findings.error for s in self.model.samples))),
        )
        return {
            "checkpoint": checkpoint,
            "step": self.step,
            "timestamp": self.created,
            "settings": dataclasses.asdict(self.settings),
            "total_samples": len(self.model.samples),
            "compile_success_rate": None if share is None else 100 * share,
            "compile_errors": [error for error, _ in errors.most_common(MAX_ERRORS)],
            **{name: totals[name] for name in ("avg_lines", "avg_functions", "avg_complexity")},
            "avg_generation_time_ms": 1000 * self.model.seconds / len(self.model.samples),
            "tokens_per_second": totals["tokens_per_second"],
            "left_out": self.left_out,
            "totals": totals,
            "baselines": {name: samples.totals() for name, samples in self.baselines.items()},
        }

    def to_json(self, checkpoint: str) -> dict[str, Any]:
        """Returns the whole report as JSON: the summary, and the samples of each prompt."""
        groups, tested = self.model.by_problem, {group[0].draft.problem.id for group in self.model.tested}
        prompts = [_of_prompt(group, group[0].draft.problem.id in tested) for group in groups]
        return self.summary(checkpoint) | {"samples_by_prompt": prompts}


def error_class(sample: Sample) -> str | None:
    """Returns the class of a sample's first error: the compiler's code, such as E0308, or the name of the exception.

    It is "other" if the message has neither, and None if there is no error.
    """
    if not sample.findings.error:
        return None
    found = re.search(r"\bE\d{4}\b|\b[A-Z]\w*Error\b", sample.findings.error)
    return found[0] if found else "other" if sample.findings.parses else "syntax"


def _share(values: Sequence[bool | None]) -> dict[str, Any]:
    """Returns how many of the values are true, of those that are not None, and the share with its interval."""
    known = [value for value in values if value is not None]
    count, total = sum(known), len(known)
    if not total:
        return {"count": 0, "total": 0, "share": None, "low": None, "high": None}
    low, high = wilson(count / total, total)
    return {"count": count, "total": total, "share": count / total, "low": low, "high": high}


def _of_prompt(group: Sequence[Sample], tested: bool) -> dict[str, Any]:
    """Returns the samples of a prompt as JSON. `tested` is whether its tests were executed."""
    problem = group[0].draft.problem
    errors = Counter(filter(None, (sample.findings.error for sample in group)))
    return {
        "prompt": problem.prompt,
        "task_id": problem.id,
        "language": problem.language,
        "entry_point": problem.entry_point,
        "n_samples": len(group),
        "compile_success": sum(sample.findings.compiles is True for sample in group),
        "avg_lines": mean([sample.findings.lines for sample in group]),
        "common_errors": [error for error, _ in errors.most_common(MAX_EXAMPLES)],
        "sample_outputs": [sample.draft.text[:MAX_EXAMPLE] for sample in group[:MAX_EXAMPLES]],
        "samples": [_of_sample(sample) | {"passed": sample.passed if tested else None} for sample in group],
    }


def _of_sample(sample: Sample) -> dict[str, Any]:
    findings = dataclasses.asdict(sample.findings) | {"defined": sorted(sample.findings.defined)}
    return {
        "seed": sample.draft.seed,
        "text": sample.draft.text,
        "program": sample.program,
        "tokens": sample.draft.num_tokens,
        "finish_reason": sample.draft.finish_reason,
        **findings,
        "defines": sample.defines,
        "valid": sample.valid,
        "outcome": sample.outcome.kind if sample.outcome else None,
    }
