"""The training loop: a generator that repeats the compiled step and yields reports.

On a GPU, the loop submits the next step before it reads the loss of the last one, so the device does not wait for the
host. A checkpoint holds the state of a run. With the same settings, machine and number of CPU cores, a resumed run
therefore equals an uninterrupted one. There are two exceptions: the number of consecutive bad steps starts again at 0,
and with `train.minutes`, the length of the run depends on measured times.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx.utils import tree_flatten

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import Config
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx, peak_memory
from mlx_gpt.errors import from_device
from mlx_gpt.train.evaluate import Validation, report_of
from mlx_gpt.train.objective import Objective
from mlx_gpt.train.pace import Pace
from mlx_gpt.train.parallel import Group, agree, of_rank, require_equal, share
from mlx_gpt.train.patience import after_evaluation
from mlx_gpt.train.reports import Plan, Report, SampleDue, SaveReport, StartReport, StepReport, StopReport
from mlx_gpt.train.rounds import make_rounds
from mlx_gpt.train.saving import BEST, LATEST, CheckpointWriter
from mlx_gpt.train.snapshot import Pending, Pipeline, Snapshot
from mlx_gpt.train.source import Source
from mlx_gpt.train.statistics import Statistics
from mlx_gpt.train.step import make_step

MAX_BAD_STEPS = 5  # the run stops as diverged after this many bad steps in a row: skipped, or with an absurd loss
ABSURD = 10  # a loss is absurd above this multiple of log(vocab_size + 1), about that of a uniform guess
COMPARE_STEPS = 100  # steps between comparisons of the ranks' weights


class Trainer:
    """Trains a model: a new run, or one that continues from a checkpoint.

    Args:
        header: Settings and progress of the run.
        model: The network. Training starts from its weights.
        optimizer: Updates the weights.
        optimizer_state: The optimizer's tensors in a checkpoint, or None. Missing tensors take their initial values.
        objective: The training objective.
        source: Provides the training batches. The trainer moves it to the position in the header.
        validation: Evaluates weights on the validation split.
        statistics: Computes statistics of the weights at each evaluation.
        group: The processes that train together.
        folder: Folder for checkpoints. `run` requires that it exists.
        fit: Fits the settings to a new `train.iters`, which a time budget gives. Only rank 0's result counts.

    Attributes:
        header: Settings and progress. `elapsed`, `source` and `num_updates` are those at the start of this process; a
            checkpoint of snapshot() has the current ones.
        state: The training state on the device: {"weights": ..., "optimizer": ...}.
        pipeline: The steps whose outputs have not been read yet.
        pace: The measured times of steps and evaluations.
        source, validation: As given.
    """

    def __init__(
        self,
        *,
        header: Header,
        model,
        optimizer,
        optimizer_state: store.Tensors | None,
        objective: Objective,
        source: Source,
        validation: Validation,
        statistics: Statistics,
        group: Group,
        folder: Path,
        fit: Callable[[Config], Config] = lambda config: config,
    ):
        self.header, self.folder, self.model, self._fit = header, folder, model, fit
        self.source, self.validation = source, validation
        self._optimizer, self._statistics, self._group = optimizer, statistics, group
        if header.source is not None:
            source.seek(header.source)
        lanes(self.config.speed.lanes)  # evaluations and the optimizer are traced for the lanes of this thread
        self._rounds = make_rounds(group, self.config)
        weights = of_rank(group, 0, model.weights())
        self.state = {
            "weights": weights,
            "optimizer": self._rounds.restore(optimizer, weights, optimizer_state or {}, header.num_updates),
        }
        self._step = make_step(model, optimizer, objective, source.gather, self._rounds.inner, self.config)
        self.pipeline, self.pace = Pipeline(), Pace(validation.num_windows)
        self._exchanged: Snapshot | None = None
        self._skipped = self._bad_steps = 0
        self._signal = False
        self._last_sample = self._last_comparison = header.step

    @property
    def config(self):
        return self.header.config

    @property
    def state_bytes(self) -> int:
        """Size of the weights and the optimizer state in bytes, in memory and in a checkpoint."""
        return sum(a.nbytes for _, a in tree_flatten(self.state))

    def time_steps(self, count: int) -> list[float]:
        """Measures the seconds of each of `count` steps. A step before them, which compiles, is not counted.

        All steps use the next batch of the source. The state and the position of the run do not change.
        """
        state, seconds, position = self.state, [], self.source.position
        arrays = self._own(self.source.next(self.header.step, state["weights"]))
        self.source.seek(position)
        lr = mx.array(self.config.optimizer.learning_rate)
        for i in range(count + 1):
            start = time.perf_counter()
            state, output = self._step(state, lr, mx.array(i, dtype=mx.uint32), *arrays)
            mx.eval(state, output)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def stop(self) -> None:
        """Requests that the loop ends after the current step and saves. Safe to call from a signal handler."""
        self._signal = True

    def run(self, require_folder: Callable[[], None] = lambda: None) -> Iterator[Report]:
        """Trains to the end of the run and yields reports.

        Before each step, the loop makes the plan, the evaluation, the sample and the save that are due, in this order.
        An evaluation, a sample and a save first read the outputs of all submitted steps, so that reports are in order.

        Args:
            require_folder: Called before each save. It raises UserError if `folder` is no longer that of the run.

        Raises:
            OutOfRoom: The disk has no space for the checkpoints, or memory ran out.
            DeviceTimeout: The system ended work on the GPU because it took too long.
        """
        self._writer = CheckpointWriter(self.folder, require_folder)
        try:
            yield from self._loop()
        except (RuntimeError, MemoryError) as error:
            explained = self._group.failure(error) or from_device(error)
            if explained is None:
                raise
            yield from self._rescue()
            raise explained from error

    def _loop(self) -> Iterator[Report]:
        self._begin()
        if not self._group.rank:
            self._writer.require_space(self.state_bytes)
        yield from self._start()
        while True:
            if self._needs_plan():
                yield self._plan()
            if self._evaluation_due():
                yield from self._drain()
                yield from self._evaluation()
            if self._sample_due():
                yield from self._drain()
                yield from self._sample()
            reason, save_due = self._decide()
            if reason:
                break
            if save_due:
                yield from self._drain()
                yield from self._save(LATEST)
            yield from self._round()
        yield from self._drain()
        yield from self._finish(reason)

    def snapshot(self) -> Snapshot:
        """Returns the state of the run, on the device."""
        header = dataclasses.replace(self.header, elapsed=self._elapsed(), source=self.source.position)
        return Snapshot(header, self.state)

    # -- the step ------------------------------------------------------------------------------------------------

    def _round(self) -> Iterator[StepReport]:
        """Makes the steps of a round. With `train.min_ranks`, rank 0 keeps the state at its start."""
        if self.config.train.min_ranks and not self._group.rank:
            self._exchanged = self.snapshot()
        end = self._rounds.end(self.header.step, self.config.train.iters)
        while self.header.step < end:
            self._submit()
            if self.pipeline.full:
                yield self._read()
        self.state = self._rounds.exchange(self.state)
        if self._group.size > 1 and self.header.step - self._last_comparison >= COMPARE_STEPS:
            self._last_comparison = self.header.step
            require_equal(self._group, self.state["weights"], self.header.step)

    def _own(self, arrays) -> list[mx.array]:
        """Returns this process's rows of a batch."""
        return [mx.array(a[share(self._group, len(a))]) for a in arrays]

    def _submit(self) -> None:
        step, header = self.header.step, self.header
        lr = self._optimizer.learning_rate(step, self.config.train.iters, header.num_lr_cuts)
        arrays = self._own(self.source.next(step, self.state["weights"]))
        self.state, output = self._step(self.state, mx.array(lr), mx.array(step, dtype=mx.uint32), *arrays)
        mx.async_eval(self.state, output)
        self._advance(step=step + 1, tokens=header.tokens + self.source.tokens_per_batch)
        self.pipeline.add(Pending(self.snapshot(), lr, output, self.source.metrics))

    def _read(self) -> StepReport:
        """Waits for the oldest submitted step and returns its report."""
        after, lr, output, metrics = self.pipeline.read()
        finite, loss = output.finite.item(), output.loss.item()
        self._skipped = 0 if finite else self._skipped + 1
        # The + 1 keeps the limit above 0 for a vocabulary of one id, whose uniform guess has the loss log(1) = 0.
        self._bad_steps = 0 if finite and loss < ABSURD * math.log(self.header.vocab_size + 1) else self._bad_steps + 1
        now = time.perf_counter()
        seconds, self._last_read = now - self._last_read, now
        if after.header.step > self._first_step + 1:  # the first step of this process also compiles
            self.pace.add(seconds)
        return StepReport(
            step=after.header.step,
            lr=lr,
            rule_lrs=self._optimizer.rule_rates(lr),
            seconds=seconds,
            elapsed=self._elapsed(),
            loss=loss,
            grad_norm=output.grad_norm.item(),
            skipped=self._skipped,
            tokens=after.header.tokens,
            peak_memory=peak_memory(),
            metrics=metrics | {name: value.item() for name, value in output.metrics.items()},
        )

    def _drain(self) -> Iterator[StepReport]:
        while self.pipeline:
            yield self._read()

    def _rescue(self) -> Iterator[SaveReport]:
        """Saves the last step that is known to be complete, after an error of the device or the loss of a rank.

        The arrays of later steps may hold anything. Saves nothing if the complete state cannot be read either. A step
        may be in the middle of a round, in which the ranks have different weights; then the state at the start of the
        round is saved, if it was kept.
        """
        complete = self.pipeline.abandon()
        if self.config.train.sync_every and (complete := self._exchanged):
            self.header = complete.header
        if complete and not self._group.rank:
            header, self.state = complete
            self._advance(step=header.step, tokens=header.tokens)
            self.source.seek(header.source)
            with contextlib.suppress(RuntimeError):
                yield from self._writer.save_last(self.snapshot().checkpoint(tensors=self._rounds.own()))

    # -- plans, evaluations, samples, saves, the end ---------------------------------------------------------------

    def _begin(self) -> None:
        self._started = self._last_read = self._last_save = time.perf_counter()
        self._elapsed_before, self._first_step = self.header.elapsed, self.header.step

    def _elapsed(self) -> float:
        return self._elapsed_before + time.perf_counter() - self._started

    def _advance(self, **changes) -> None:
        self.header = dataclasses.replace(self.header, **changes)

    def _needs_plan(self) -> bool:
        return bool(self.config.train.minutes) and not self.header.planned and self.pace.is_known

    def _plan(self) -> Plan:
        """Converts the time budget to a number of updates, so that the learning-rate schedule ends with the budget."""
        self.header = self.pace.planned(self.header, self._elapsed(), self._fit, self._group)
        return self.pace.plan(self.header)

    def _decide(self) -> tuple[str | None, bool]:
        """Returns what to do before the next round, the same on all ranks.

        Returns:
            The reason to end the run now, or None, and whether a checkpoint is due. The reasons are those of
            StopReport. A signal, a spent time budget and bad steps count on any rank.
        """
        train, header = self.config.train, self.header
        signal, diverged, is_spent, save_due, joins = agree(
            self._group,
            self._signal,
            self._bad_steps >= MAX_BAD_STEPS,
            self.pace.is_spent(header, self._elapsed()),
            self._save_due(),
            self._group.has_newcomers(),
        )
        reasons = {
            "signal": signal,
            "diverged": diverged,
            "iters": header.step >= train.iters,
            "patience": bool(train.patience) and header.bad_evals >= train.patience,
            "minutes": is_spent,
            "ranks": joins and header.step > self._first_step,
        }
        return next((reason for reason, holds in reasons.items() if holds), None), save_due

    def _stops(self) -> bool:
        """Whether `stop` was called on any rank."""
        return agree(self._group, self._signal)[0]

    def _evaluation_due(self) -> bool:
        step, train = self.header.step, self.config.train
        due = step % train.eval_every == 0 and (step > 0 or train.eval_at_start)
        return due and self.header.last_eval != step and not self._stops()

    def _start(self) -> Iterator[StartReport]:
        """Reports the loss before the first update, unless the run ends without an update or an evaluation is due."""
        if self._evaluation_due() or self._decide()[0]:
            return
        if report := self.validation.at_start(self.state["weights"], self.header.step, lambda: self._signal):
            yield report
        self._last_read = time.perf_counter()

    def _evaluation(self) -> Iterator[Report]:
        """Evaluates the weights and their average, updates the header, and saves a checkpoint with a new lowest loss.

        Nothing changes if `stop` interrupts the evaluation.
        """
        start, header = time.perf_counter(), self.header
        average = self._optimizer.average(self.state["optimizer"])
        candidates = [self.state["weights"]] + [average] * bool(average)
        results = [self.validation(weights, header.step, lambda: self._signal) for weights in candidates]
        if None in results:
            return
        shares = self._statistics(self.state["weights"])
        self.pace.eval_seconds = seconds = time.perf_counter() - start
        self.header = after_evaluation(header, min(result.loss for result in results))
        report = report_of(self.header, results, seconds=seconds, elapsed=self._elapsed(), shares=shares)
        yield report
        if report.is_best and header.step > 0:
            yield from self._save(BEST, report.averaged)
        self._last_read = time.perf_counter()

    def _sample_due(self) -> bool:
        step, every = self.header.step, self.config.train.sample_every
        # -1 is one sample after each evaluation, 0 is never.
        due = self.header.last_eval == step if every == -1 else every > 0 and step % every == 0
        return due and step > 0 and self._last_sample != step and not self._stops()

    def _sample(self) -> Iterator[SampleDue]:
        self._last_sample = self.header.step
        self.model.set_weights(self.state["weights"])
        yield SampleDue(step=self.header.step)
        self._last_read = time.perf_counter()  # the caller has generated the text

    def _save_due(self) -> bool:
        """Whether rank 0, which saves, has to save a checkpoint."""
        minutes = self.config.train.save_minutes
        return not self._group.rank and bool(minutes) and time.perf_counter() - self._last_save >= minutes * 60

    def _save(self, name: str, averaged: bool = False) -> Iterator[SaveReport]:
        """Saves a checkpoint, on rank 0 only."""
        tensors = self._rounds.tensors(self.state["optimizer"])
        if not self._group.rank:
            yield self._writer.save(name, self.snapshot().checkpoint(averaged, tensors))
        self._last_save = self._last_read = time.perf_counter()

    def _save_last(self) -> Iterator[SaveReport]:
        tensors = self._rounds.tensors(self.state["optimizer"])
        if not self._group.rank:
            yield from self._writer.save_last(self.snapshot().checkpoint(tensors=tensors))

    def _finish(self, reason: str) -> Iterator[Report]:
        """Reports the end of the run.

        If the run reached its number of updates or its time budget, the last weights are evaluated first. A checkpoint
        is saved unless the run diverged or made no step.
        """
        saved = True
        if reason == "minutes":  # resumed without more time, the run is complete
            self._advance(config=self.config.replace({"train.iters": self.header.step}), planned=True)
        if reason in ("iters", "minutes") and self.header.last_eval != self.header.step:
            yield from self._evaluation()
            reason = "signal" if self._stops() else reason
            if self._sample_due():
                yield from self._sample()
        if reason != "diverged" and self.header.step > 0:
            yield from (saves := list(self._save_last()))
            saved = not any(save.error for save in saves)
        yield StopReport(
            step=self.header.step,
            reason=reason,
            tokens=self.header.tokens,
            elapsed=self._elapsed(),
            steps=self.header.step - self._first_step,
            seconds=self._elapsed() - self._elapsed_before,
            best_loss=self.header.best_loss,
            best_step=self.header.best_step,
            peak_memory=peak_memory(),
            saved=saved,
        )
