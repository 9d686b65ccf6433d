"""The measured times of a run, and the number of updates that fit into a time budget."""

import dataclasses
import statistics
from collections import deque
from collections.abc import Callable

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.budget import EVALUATION_COST
from mlx_gpt.config.schema import Config
from mlx_gpt.train.parallel import Group
from mlx_gpt.train.reports import Plan

PROBE_STEPS = 5  # steps that are timed before a time budget is converted to a number of updates
NEVER = 1 << 40  # steps between evaluations of a run that makes only the last one
FIT_ROUNDS = 6
COUNTS = ("train.iters", "optimizer.warmup_steps", "train.eval_every")  # settings that a time budget may change


class Pace:
    """The times of the steps and evaluations of this process.

    Args:
        num_windows: Number of windows of an evaluation.

    Attributes:
        eval_seconds: Seconds of the last evaluation; 0 if there was none.
    """

    def __init__(self, num_windows: int):
        self._num_windows, self.eval_seconds = num_windows, 0.0
        self._steps: deque[float] = deque(maxlen=20)

    def add(self, seconds: float) -> None:
        """Adds the time of a step."""
        self._steps.append(seconds)

    @property
    def is_known(self) -> bool:
        """Whether enough steps have been timed for a plan."""
        return len(self._steps) >= PROBE_STEPS

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of the last steps; None if none was timed."""
        return statistics.median(self._steps) if self._steps else None

    def next_eval_seconds(self, step_seconds: float, header: Header) -> float:
        """Estimates the seconds of the next evaluation: the time of the last one, if there was one.

        Before the first evaluation, it is EVALUATION_COST times that in which steps train on as many windows.
        """
        estimate = EVALUATION_COST * step_seconds * self._num_windows / header.config.train.sequences_per_step
        return self.eval_seconds or estimate

    def eval_share(self, step_seconds: float, header: Header) -> float:
        """Estimates the share of the time of a run that evaluations before its end take, from 0 to 1."""
        train = header.config.train
        evaluations = (train.iters - 1) // train.eval_every * self.next_eval_seconds(step_seconds, header)
        return round(evaluations / (train.iters * step_seconds + evaluations), 3)

    def planned(self, header: Header, elapsed: float, fit: Callable[[Config], Config], group: Group) -> Header:
        """Returns the header with a `train.iters` that fits the time budget, and the settings that `fit` fits to it.

        The measured times and `fit` are those of rank 0.

        Args:
            header: Settings and progress of the run.
            elapsed: Seconds of the budget that are already spent.
            fit: Fits the settings of COUNTS to a new `train.iters`.
            group: The processes that train together.
        """
        config = self.fitted(self.step_seconds, header, elapsed, fit)
        counts = group.gather(*map(config.get, COUNTS))[0]
        config = header.config.replace(dict(zip(COUNTS, counts, strict=True)))
        return dataclasses.replace(header, config=config, planned=True)

    def fitted(self, step_seconds: float, header: Header, elapsed: float, fit: Callable[[Config], Config]) -> Config:
        """Returns the settings with a `train.iters` that fits the time budget, see planned().

        The evaluations follow from the length, and the length from the time that they take. The first length has one
        evaluation, at its end. Each round is nearer to a length that agrees with its evaluations.
        """
        config, eval_every = header.config, NEVER
        for _ in range(FIT_ROUNDS):
            iters = self.iters_in_budget(step_seconds, header, elapsed, eval_every)
            config = fit(header.config.replace({"train.iters": iters}))
            eval_every = config.train.eval_every
        return config

    def plan(self, header: Header) -> Plan:
        """Returns the report of a header that planned() returned."""
        train, seconds = header.config.train, self.step_seconds
        return Plan(
            iters=train.iters,
            step_seconds=seconds,
            step=header.step,
            eval_share=self.eval_share(seconds, header),
            warmup_steps=header.config.optimizer.warmup_steps,
            eval_every=train.eval_every,
        )

    def iters_in_budget(self, step_seconds: float, header: Header, elapsed: float, eval_every: int) -> int:
        """Computes the total number of updates that fit into `train.minutes`, at most `train.iters`.

        The time of evaluations is subtracted: one every `eval_every` steps, and one at the end.

        Args:
            step_seconds: Seconds of a training step.
            header: Settings and progress of the run.
            elapsed: Seconds of the budget that are already spent.
            eval_every: Steps between evaluations.
        """
        train, eval_seconds = header.config.train, self.next_eval_seconds(step_seconds, header)
        done = header.step % eval_every  # steps since the last evaluation
        left = train.minutes * 60 - elapsed + done * step_seconds
        evaluations, rest = divmod(left, eval_every * step_seconds + eval_seconds)
        more = int(evaluations) * eval_every + max(0, int((rest - eval_seconds) / step_seconds)) - done
        return min(train.iters, header.step + max(more, 1))

    def is_spent(self, header: Header, elapsed: float) -> bool:
        """Whether the time budget, if there is one, leaves no more time than the last evaluation needs.

        It is never spent before the first step of a run.
        """
        minutes, step_seconds = header.config.train.minutes, self.step_seconds
        if not minutes or not header.step:
            return False
        last = self.next_eval_seconds(step_seconds, header) if step_seconds else 0.0
        return elapsed + last >= minutes * 60
