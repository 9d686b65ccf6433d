"""Reports of a training run: immutable values that the terminal, metrics.jsonl and notebooks read."""

import dataclasses
import math
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The length of the run, after it was computed from the time budget `train.minutes`.

    Attributes:
        iters: Total number of updates of the run.
        step_seconds: Median seconds of an update, from which `iters` was computed.
        step: Number of updates submitted when `iters` was computed. On a GPU, the last of them may be unfinished.
        eval_share: Expected share of the time that evaluations take, without the last one, from 0 to 1.
        warmup_steps, eval_every: The settings of these names, which may have been fitted to `iters`.
    """

    iters: int
    step_seconds: float | None = None
    step: int = 0
    eval_share: float = 0.0
    warmup_steps: int = 0
    eval_every: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StartReport:
    """The loss before the first update of a process: of initial weights, or of the weights that a run resumes with.

    It is not one of the run's evaluations. There is no such report if an evaluation is due at this step, or if the
    process makes no update.

    Attributes:
        step: Number of finished steps.
        start_loss: Validation loss in nats per token, over a sample of the validation split.
        ppl: Perplexity, exp(start_loss).
        eval_tokens: Number of predicted validation tokens.
        seconds: Duration of the measurement.
        memory_limit: The most memory that MLX arrays may use, in bytes; 0 if it is not known.
    """

    step: int
    start_loss: float
    ppl: float
    eval_tokens: int
    seconds: float
    memory_limit: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One finished step.

    Attributes:
        step: Number of finished steps, including this one and skipped ones.
        loss: Mean loss of the batch. For the cross-entropy objective, in nats per token.
        grad_norm: L2 norm of all gradients before clipping.
        lr: Scheduled learning rate of this step.
        rule_lrs: Learning rate of this step by update rule, such as {"adamw": 0.003, "muon": 0.02}.
        tokens: Number of training tokens read since the run's start, padding included.
        seconds: Time since the end of the previous step, evaluation, sample or save.
        elapsed: Training time since the run's start in seconds, including earlier processes of a resumed run.
        skipped: Number of consecutive skipped updates of this process up to this step; 0 if this update was applied. An
            update is skipped if the loss or the gradient norm is not finite.
        peak_memory: Peak memory of MLX arrays in this process so far, in bytes; 0 if it is not known.
        metrics: Further means that the objective reports, and numbers that the source reports of the batch.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    elapsed: float
    skipped: int
    peak_memory: int = 0
    rule_lrs: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """One evaluation on the validation split.

    With `optimizer.ema_decay`, the evaluation measures both the trained weights and their average. `loss`, `ppl` and
    `bits_per_byte` belong to whichever has the lower loss.

    Attributes:
        step: Number of finished steps.
        loss: Validation loss in nats per token.
        raw_loss: Validation loss of the trained weights. It equals `loss` if no average is kept.
        ppl: Perplexity, exp(loss).
        bits_per_byte: Total loss in bits, divided by the number of UTF-8 bytes of the predicted tokens.
        eval_tokens: Number of predicted validation tokens.
        tokens: Number of training tokens read since the run's start, padding included.
        seconds: Duration of the evaluation.
        elapsed: Training time since the run's start in seconds, including earlier processes of a resumed run.
        best_loss: Lowest `loss` so far, including this evaluation.
        best_step: The step of `best_loss`.
        bad_evals: Number of consecutive evaluations without a new lowest loss; reset by a cut of the learning rate.
        num_lr_cuts: Number of cuts of the learning rate so far, after evaluations stopped improving.
        memory_limit: As in StartReport.
        metrics: Further means that belong to `loss`. In nats per token: cross-entropy, entropy, and their difference.
            `logits.max` is the largest absolute logit of each prediction.
        shares: Statistics of the trained weights, numbers from 0 to 1, such as {"zeros": 0.31}.
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
    memory_limit: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def lr_cuts(self) -> int:
        """Old name of `num_lr_cuts`."""
        return self.num_lr_cuts

    @property
    def averaged(self) -> bool:
        """Whether `loss` was measured with the average of the weights."""
        return self.loss < self.raw_loss

    @property
    def is_best(self) -> bool:
        """Whether this evaluation has the lowest loss so far."""
        return self.best_step == self.step


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDue:
    """A request to generate a sample of text. The trainer's model holds the weights of this step.

    The consumer of the reports generates the text; the trainer does not.
    """

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleReport:
    """A text that the model generated after a SampleDue report. The consumer of the reports makes this report.

    Attributes:
        step: Number of finished steps.
        text: The text.
    """

    step: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveReport:
    """One attempt to save a checkpoint.

    A run that cannot write its last checkpoint to its folder tries other folders, with a report for each of them.

    Attributes:
        step: Number of finished steps.
        path: File of the checkpoint; the folder, if no file could be created in it.
        error: None if the checkpoint was written. Otherwise the reason why not, such as a full disk; the run continues
            and tries again at the next save.
        num_bytes: Size of the file; None if it was not written.
        free_bytes: Free space on its disk afterwards; None if it is not known.
    """

    step: int
    path: str
    error: str | None = None
    num_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """A sign that something is wrong with a run. See watch/health.py.

    Attributes:
        kind: What is wrong, such as "diverging".
        step: The step at which it was detected.
        since: The step since which it has been so.
        evidence: What was measured, with numbers.
        advice: What the user can do.
    """

    kind: str
    step: int
    since: int
    evidence: str
    advice: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureReport:
    """An error that ended the process of a run. The run has no StopReport then.

    Attributes:
        step: Number of submitted steps.
        error: Name of the error's class, such as "OutOfRoom".
        message: Its message.
    """

    step: int
    error: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StopReport:
    """The end of the run.

    Attributes:
        step: Number of finished steps of the run.
        reason: "iters" (all updates made), "minutes" (time budget spent), "patience" (too many evaluations without a
            new lowest loss), "signal" (stopped on request), "diverged" or "ranks" (all processes start again, with
            others that join).
        tokens: Number of training tokens read since the run's start, padding included.
        steps: Number of steps made by this process.
        seconds: Training time of this process.
        elapsed: Training time since the run's start in seconds, including earlier processes of a resumed run.
        best_loss: Lowest validation loss.
        best_step: The step of `best_loss`.
        peak_memory: Peak memory of MLX arrays in this process, in bytes.
        saved: False if the final checkpoint could not be written to the run folder. If it was written elsewhere, the
            last SaveReport names the file. A run that diverged or made no step writes none, and has True.
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


Report = (
    Plan
    | StartReport
    | StepReport
    | EvalReport
    | SampleDue
    | SampleReport
    | SaveReport
    | Alert
    | FailureReport
    | StopReport
)


def kind(report: Report) -> str:
    """Returns the report's kind, as in metrics.jsonl and --json.

    The kinds are plan, start, step, eval, sampledue, sample, save, alert, failure and stop.
    """
    return type(report).__name__.removesuffix("Report").lower()


def to_dict(report: Report) -> dict:
    """Returns the report's fields as values that JSON can represent.

    An infinite or NaN number becomes None. The entries of `metrics` and `shares` become fields of their own. An
    evaluation has `num_lr_cuts` also under its old name `lr_cuts`.

    Raises:
        AssertionError: An entry of `metrics` or `shares` has the name of another field.
    """
    fields = dataclasses.asdict(report)
    metrics = fields.pop("metrics", {}) | fields.pop("shares", {})
    assert not metrics.keys() & fields.keys(), f"metrics with the name of a field: {metrics.keys() & fields.keys()}"
    fields |= metrics
    if isinstance(report, EvalReport):
        fields["lr_cuts"] = report.lr_cuts
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
