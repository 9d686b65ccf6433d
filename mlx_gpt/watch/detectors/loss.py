"""Detectors that read the losses of a run: it diverges, stops improving, overfits, or is too certain."""

import math
import statistics
from collections import deque

from mlx_gpt.watch.detectors.protocol import Finding, Line, Settings, number

RECENT = 10  # updates whose median is judged, so that a few bad batches in a row raise no alert
BEFORE = 100  # updates before them: enough for a stable median, few enough to follow the falling loss
FEWEST = 30  # of these, the fewest for a spread; warm-up has 20 updates by default
MAX_Z = 6.0  # of a median of RECENT updates; the noise of batches stays below 3
MIN_RISE = 1.1  # a loss that has hardly any noise may have a large z-score at a small rise
ABOVE_START = 1.25  # a loss this much above that of the initial weights is not learning
HIGH = 5  # such updates in a row; the trainer stops after as many with an absurd loss
NORM_RATIO = 10.0  # gradient norms change by less than 4 within BEFORE updates of a run that learns
MAX_SKIPPED = 2  # one skipped update is an accident; the trainer stops after five

PATIENCE = 6  # evaluations without progress; the default of train.patience, which stops a run, is 10
PROGRESS = 0.002  # a relative fall of the loss that counts as progress: below it, two evaluations hardly differ
SPAN = 0.1  # of a run: a plateau is at least this long, because frequent evaluations fall little from one to the next
REST = 0.1  # a plateau in this last part of a run is its end

RISE = 1.01  # a validation loss this much above the best: more than evaluations of random windows differ
RISING = 3  # such evaluations in a row

SURE = 0.5  # a network whose entropy is below this share of its loss is wrong where it is certain
MIN_GAP = 0.5  # nats by which the entropy is lower than the loss then; small losses differ by less
MAX_LOGIT = 64.0  # bfloat16 numbers from here on are 0.5 apart, so that probabilities are wrong by a factor of 1.6


class Diverging:
    """The loss or the gradient norm rises far above its noise, or updates are skipped."""

    kind, reports, clear = "diverging", ("start", "step", "eval"), 100

    def __init__(self, settings: Settings):
        self._settings, self._start, self._high, self._saved = settings, None, 0, False
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=RECENT + BEFORE)
        self._found: Finding | None = None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        if kind == "start":
            self._start = self._start or number(line, "start_loss")
            self._found, self._high = None, 0  # the settings may have changed
            self._steps.clear()
        if kind != "step":
            # The first evaluation after an update saves the best checkpoint so far.
            self._saved = self._saved or (kind == "eval" and line["step"] > 0)
            return self._found
        if (skipped := number(line, "skipped") or 0) >= MAX_SKIPPED:
            since = int(line["step"] - skipped + 1)
            return self._finding(since, f"{skipped:.0f} updates in a row had a loss or gradient that is not finite")
        loss, norm = number(line, "loss"), number(line, "grad_norm")
        if loss is None or norm is None or self._settings.is_rl or "reward" in line:
            return None  # a loss of rewards has no scale that its values could be compared with
        self._steps.append((int(line["step"]), loss, norm))
        self._high = self._high + 1 if self._start and loss > ABOVE_START * self._start else 0
        if self._high >= HIGH:
            evidence = f"the loss is {loss:.4g}, and was {self._start:.4g} before the first update"
            return self._finding(int(line["step"]) - self._high + 1, evidence)
        if line["step"] % RECENT == 0:  # medians take time
            self._found = self._judge()
        return self._found

    def _judge(self) -> Finding | None:
        steps = list(self._steps)
        recent, before = steps[-RECENT:], steps[:-RECENT]
        since, loss, norm = recent[0][0], *(statistics.median(values) for values in list(zip(*recent, strict=True))[1:])
        if len(before) < FEWEST:
            return None
        losses, norms = [step[1] for step in before], [step[2] for step in before]
        usual, usual_norm = statistics.median(losses), statistics.median(norms)
        spread = 1.4826 * statistics.median(abs(x - usual) for x in losses)  # the standard deviation of normal noise
        z = (loss - usual) / spread if spread else math.inf
        if z > MAX_Z and loss > MIN_RISE * usual:
            return self._finding(since, f"the loss rose from {usual:.4g} to {loss:.4g}, {z:.1f} standard deviations")
        if usual_norm and norm > NORM_RATIO * usual_norm and loss > usual:
            return self._finding(
                since, f"the gradient norm rose from {usual_norm:.3g} to {norm:.3g}, and the loss to {loss:.4g}"
            )
        return None

    def _finding(self, since: int, evidence: str) -> Finding:
        lower = self._settings.get("optimizer.learning_rate", 3e-3) / 3
        best = "" if self._settings.is_rl else "best.safetensors"
        again = f"continue with {self._settings.resume('', best)}" if self._saved else "start again with"
        return Finding(since=since, evidence=evidence, advice=f"stop it, and {again} --lr {lower:.2g}")


class Plateau:
    """The validation loss no longer falls, although the run is far from its end."""

    kind, reports, clear = "plateau", ("plan", "eval"), 3

    def __init__(self, settings: Settings):
        self._settings, self._iters = settings, settings.get("train.iters", 0)
        self._best, self._since, self._bad = math.inf, 0, 0

    def __call__(self, kind: str, line: Line) -> Finding | None:
        self._iters = number(line, "iters") or self._iters  # of a plan
        loss, step = number(line, "val_loss"), int(line["step"])
        if loss is None or self._settings.is_rl:
            return None
        if loss < self._best * (1 - PROGRESS):
            self._best, self._since, self._bad = loss, step, 0
            return None
        self._bad += 1
        is_long = self._bad >= PATIENCE and step - self._since >= SPAN * self._iters
        if not is_long or loss > RISE * self._best or step > (1 - REST) * self._iters > 0:
            return None
        evidence = f"the validation loss is {loss:.4f} after {self._bad} evaluations, and was {self._best:.4f}"
        return Finding(since=self._since, evidence=evidence, advice=self._advice(step))

    def _advice(self, step: int) -> str:
        decay = self._settings.get("optimizer.decay_start", 0.6)
        schedule = self._settings.get("optimizer.schedule", "wsd")
        if schedule != "linear" and 0 < decay and step < decay * self._iters:
            command = self._settings.resume(f"--iters {math.ceil(step / decay)}")
            return f"stop it, and let the learning rate decay now: {command}"
        return "stop it; a larger --preset or more text can reach a lower loss"


class Overfitting:
    """The validation loss rises while the training loss falls."""

    kind, reports, clear = "overfitting", ("step", "eval"), 3

    def __init__(self, settings: Settings):
        self._settings = settings
        self._losses: list[float] = []  # of the updates since the last evaluation
        # Of an evaluation: its step, its loss, and the mean training loss before it.
        self._best: tuple[int, float, float] | None = None
        self._later: deque[tuple[int, float, float]] = deque(maxlen=RISING)  # the last evaluations after the best one
        self._found: Finding | None = None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        loss = number(line, "val_loss" if kind == "eval" else "ce" if "ce" in line else "loss")
        if kind == "step" and loss is not None:
            self._losses.append(loss)
        elif loss is not None and self._losses:
            point = int(line["step"]), loss, statistics.fmean(self._losses)
            self._losses = []
            if self._best is None or loss < self._best[1]:
                self._best = point
                self._later.clear()
            else:
                self._later.append(point)
            self._found = self._judge()
        return self._found

    def _judge(self) -> Finding | None:
        step, best, before = self._best
        if len(self._later) < RISING or any(loss < RISE * best for _, loss, _ in self._later):
            return None
        _, loss, train = self._later[-1]
        if RISE * train > before:  # a run whose training loss hardly falls has another cause
            return None
        return Finding(
            since=step,
            evidence=f"the validation loss rose from {best:.4f} to {loss:.4f}, while the training loss fell from "
            f"{before:.4f} to {train:.4f}",
            advice=f"stop it: best.safetensors has the weights of step {step}; train on more text, or with "
            f"--set model.dropout={self._dropout():.1f}",
        )

    def _dropout(self) -> float:
        return min(self._settings.get("model.dropout", 0.0) + 0.1, 0.5)


class TooCertain:
    """The predictions collapse: their entropy is far below the loss, or the logits are too large for bfloat16."""

    kind, reports, clear = "collapse", ("eval",), 3

    def __init__(self, settings: Settings):
        self._settings, self._since = settings, None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        evidence = self._evidence(line)
        self._since = None if evidence is None else self._since or int(line["step"])
        if evidence is None:
            return None
        weight = max(2 * self._settings.get("train.entropy_weight", 0.0), 0.01)
        command = self._settings.resume(f"--set train.entropy_weight={weight:g}")
        return Finding(
            since=self._since, evidence=evidence, advice=f"lower --lr, or reward uncertain predictions: {command}"
        )

    def _evidence(self, line: Line) -> str | None:
        entropy, loss, logit = number(line, "H"), number(line, "ce"), number(line, "logits.max")
        if entropy is not None and loss is not None and entropy < SURE * loss and loss - entropy > MIN_GAP:
            return f"the predictions have an entropy of {entropy:.2f} nats and a cross-entropy of {loss:.2f}"
        if logit is not None and logit > MAX_LOGIT:
            return f"the largest logits are {logit:.0f} on average"
        return None
