"""Reports of a run: frozen values that the terminal, metrics.jsonl and notebooks consume alike."""

import dataclasses
import math
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The length of the run in updates, and the seconds of an update that it was computed from, or None."""

    iters: int
    step_seconds: float | None = None
    step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One update.

    `step` counts finished updates. `loss` is the objective's mean: nats per token under cross-entropy. `seconds` is
    the time since the previous update, evaluation or save. `metrics` are what the objective reports beside the loss.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    elapsed: float
    skipped: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """One evaluation of `eval_tokens` validation tokens; `loss` is in nats per token.

    If weights are averaged, `loss` is the lower of both losses and `raw_loss` that of the weights themselves.
    """

    step: int
    loss: float
    raw_loss: float
    ppl: float
    bits_per_byte: float
    eval_tokens: int
    tokens: int
    seconds: float
    elapsed: float
    best_loss: float
    best_step: int
    bad_evals: int
    num_lr_cuts: int

    @property
    def lr_cuts(self) -> int:
        """Old name of `num_lr_cuts`."""
        return self.num_lr_cuts

    @property
    def averaged(self) -> bool:
        """Whether `loss` is that of the average of the weights."""
        return self.loss < self.raw_loss

    @property
    def is_best(self) -> bool:
        return self.best_step == self.step


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDue:
    """A sample of text is due. The model holds the weights of this step."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveReport:
    """One checkpoint was written, or could not be for the reason in `error`. The run continues and tries again."""

    step: int
    path: str
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StopReport:
    """The end of the run.

    `reason` is one of iters, minutes, patience, signal and diverged. This process made `steps` updates in `seconds`;
    `elapsed` also counts the processes before it.
    """

    step: int
    reason: str
    tokens: int
    steps: int
    seconds: float
    elapsed: float
    best_loss: float
    best_step: int
    peak_memory: int
    saved: bool


Report = Plan | StepReport | EvalReport | SampleDue | SaveReport | StopReport


def kind(report: Report) -> str:
    """The report's name in metrics.jsonl and in --json: plan, step, eval, sampledue, save or stop."""
    return type(report).__name__.removesuffix("Report").lower()


def to_dict(report: Report) -> dict:
    """The report's fields, as JSON can hold them: a number that is not finite is None.

    An objective's metrics stand beside the others; `lr_cuts` is the old name of `num_lr_cuts`.
    """
    fields = dataclasses.asdict(report)
    metrics = fields.pop("metrics", {})
    assert not metrics.keys() & fields.keys(), f"metrics with the name of a field: {metrics.keys() & fields.keys()}"
    fields |= metrics
    if isinstance(report, EvalReport):
        fields["lr_cuts"] = report.lr_cuts
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
