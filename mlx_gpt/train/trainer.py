"""The training loop: a generator of reports over one compiled step.

A GPU always has the next step queued while the host reads the last one's loss. Everything that decides the future of
a run is in its checkpoint, so that a resumed run is the unbroken run.
"""

import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mlx.utils import tree_flatten

from mlx_gpt import rng
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.data.windows import Windows, batches
from mlx_gpt.device.mlx import mx, on_gpu, peak_memory
from mlx_gpt.errors import OutOfRoom
from mlx_gpt.files import require_space
from mlx_gpt.optim.clip import CLIPS
from mlx_gpt.optim.optimizers import EMA
from mlx_gpt.optim.schedules import learning_rate
from mlx_gpt.train.evaluate import Evaluator
from mlx_gpt.train.reports import EvalReport, Plan, Report, SampleDue, SaveReport, StepReport, StopReport
from mlx_gpt.train.step import StepOutput, initial_state, make_step

MAX_BAD_STEPS = 5  # updates in a row that are skipped, or whose loss is absurd, before the run stops
ABSURD = 10  # times the loss of a uniform guess
PROBE_STEPS = 5  # updates timed before a time budget is turned into a number of updates
READ_AHEAD = 3  # updates whose text is being read while one is computed
LATEST, BEST = "checkpoint.safetensors", "best.safetensors"


class Pending(NamedTuple):
    """A submitted step, whose outputs are read later."""

    step: int
    tokens: int
    lr: float
    output: StepOutput


class Trainer:
    """Trains `model` from the state in `header`, writing checkpoints into `folder`."""

    def __init__(
        self,
        *,
        header: Header,
        model,
        optimizer,
        optimizer_state: store.Tensors | None,
        train: Windows,
        val: Windows,
        token_bytes: np.ndarray,
        folder: Path,
    ):
        """`optimizer_state`: the tensors of a checkpoint; what it lacks starts afresh."""
        self.header, self.folder, self.model, self._val = header, folder, model, val
        self._train = train
        self.state = initial_state(model.weights(), optimizer)
        self.state["optimizer"]["step"] = mx.array(header.step, dtype=mx.int32)
        saved = optimizer_state or {}
        for part in self.state["optimizer"].keys() - {"step"}:
            # Into the state's own order: what is compiled over a state goes by its order.
            own = self.state["optimizer"][part]
            self.state["optimizer"][part] = {k: mx.array(saved.get(f"{part}.{k}", a)) for k, a in own.items()}
        self._step = make_step(model, optimizer, train.gather, CLIPS[self.config.optimizer.clip_mode], self.config)
        self._evaluate = Evaluator(model, val, token_bytes, self.config.train.dtype)
        self._sweep = val.sweep(self.config.train.batch_size)
        self._pending: deque[Pending] = deque()
        # A GPU works on the next step while the host reads the last; a CPU takes a step in before it is nearly done.
        self._lag = 1 if on_gpu() else 0
        self._skipped = self._bad_steps = 0
        self._signal = False
        self._last_eval_seconds = 0.0
        self._last_sample = header.iteration
        self._step_seconds: deque[float] = deque(maxlen=20)
        self._read_ahead: deque[Future] = deque()
        self._reader = ThreadPoolExecutor(1)

    @property
    def config(self):
        return self.header.config

    @property
    def train_tokens(self) -> int:
        return self._train.num_tokens

    @property
    def val_tokens(self) -> int:
        return self._val.num_tokens

    @property
    def state_bytes(self) -> int:
        """Bytes of the weights and the optimizer's state: of the device's memory, and of a checkpoint."""
        return sum(a.nbytes for _, a in tree_flatten(self.state))

    def time_steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps after the one that compiles; the run's state is left as it was."""
        state, seconds, windows = self.state, [], [mx.array(a) for a in self._train.read(self._windows(0))]
        for i in range(count + 1):
            start = time.perf_counter()
            state, output = self._step(
                state, mx.array(self.config.optimizer.learning_rate), mx.array(i, dtype=mx.uint32), *windows
            )
            mx.eval(state, output)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def eval_seconds(self, step_seconds: float) -> float:
        """What the next evaluation should take: as the last one, or half a step for as many tokens."""
        if self._last_eval_seconds:
            return self._last_eval_seconds
        train = self.config.train
        windows = train.eval_windows or len(self._sweep) * train.batch_size
        return step_seconds / 2 * windows / train.sequences_per_step

    def iters_in_budget(self, step_seconds: float, elapsed: float = 0.0) -> int:
        """The iteration that `train.minutes` will reach, evaluations counted in."""
        train, eval_seconds = self.config.train, self.eval_seconds(step_seconds)
        left = train.minutes * 60 - elapsed - eval_seconds
        more = int(left / (step_seconds + eval_seconds / train.eval_every))
        return min(train.iters, self.header.iteration + max(more, 1))

    def stop(self) -> None:
        """Asks the loop to save and end after the current step; safe to call from a signal handler."""
        self._signal = True

    def run(self) -> Iterator[Report]:
        """Trains to the end of the run. Rare things come first, then the step."""
        self._begin()
        require_space(self.folder, 2 * self.state_bytes, "the run's two checkpoints", "choose another --out")
        while True:
            if self._needs_plan():
                yield self._plan()
            if self._evaluation_due():
                yield from self._drain()
                yield from self._evaluation()
            if self._sample_due():
                yield from self._drain()
                yield self._sample()
            if reason := self._end():
                break
            if self._save_due():
                yield from self._drain()
                yield self._save(LATEST)
            self._submit()
            if len(self._pending) > self._lag:
                yield self._read()
        yield from self._drain()
        yield from self._finish(reason)

    def checkpoint(self, averaged: bool = False) -> Checkpoint:
        """The run at this moment, on the host; if `averaged`, with the average of the weights in their place."""
        step = self.state["optimizer"]["step"].item()
        header = dataclasses.replace(self.header, elapsed=self._elapsed(), step=step, averaged=averaged)
        weights, moments = self.state["weights"], {k: v for k, v in self.state["optimizer"].items() if k != "step"}
        if averaged:
            weights, moments = moments[EMA], moments | {EMA: weights}
        return Checkpoint(
            header=header,
            weights={name: np.array(w) for name, w in weights.items()},
            optimizer={name: np.array(m) for name, m in tree_flatten(moments)},
        )

    # -- the step ------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        iteration, train = self.header.iteration, self.config.train
        lr = learning_rate(self.config.optimizer, iteration, train.iters, self.header.lr_cuts)
        index, windows = mx.array(iteration, dtype=mx.uint32), self._next_windows()
        self.state, output = self._step(self.state, mx.array(lr), index, *windows)
        mx.async_eval(self.state, output)
        tokens = self.header.tokens + train.sequences_per_step * self.config.model.block_size
        self._advance(iteration=iteration + 1, tokens=tokens)
        self._pending.append(Pending(iteration + 1, tokens, lr, output))

    def _next_windows(self) -> list[mx.array]:
        """What the next update gathers. Text that is not on the device is read some updates ahead, in a thread."""
        if self._train.on_device:
            return [mx.array(a) for a in self._train.read(self._windows(0))]
        while len(self._read_ahead) <= READ_AHEAD:
            self._read_ahead.append(self._reader.submit(self._train.read, self._windows(len(self._read_ahead))))
        return [mx.array(a) for a in self._read_ahead.popleft().result()]

    def _windows(self, ahead: int) -> np.ndarray:
        """The windows of the update that comes after `ahead` others, (2, B)."""
        train, header = self.config.train, self.header
        size = train.sequences_per_step
        if not train.shuffle:
            return self._train.draw(train.seed, rng.WINDOWS, header.iteration + ahead, size)
        return self._train.shuffled(train.seed, header.tokens // self.config.model.block_size + ahead * size, size)

    def _read(self) -> StepReport:
        """Waits for the oldest submitted step."""
        pending = self._pending.popleft()
        finite = pending.output.finite.item()
        loss = pending.output.loss.item()
        self._skipped = 0 if finite else self._skipped + 1
        self._bad_steps = 0 if finite and loss < ABSURD * math.log(self.header.vocab_size + 1) else self._bad_steps + 1
        now = time.perf_counter()
        seconds, self._last_read = now - self._last_read, now
        if pending.step > self._first_iteration + 1:  # the first one compiles
            self._step_seconds.append(seconds)
        return StepReport(
            step=pending.step,
            lr=pending.lr,
            seconds=seconds,
            elapsed=self._elapsed(),
            loss=loss,
            grad_norm=pending.output.grad_norm.item(),
            skipped=self._skipped,
            tokens=pending.tokens,
        )

    def _drain(self) -> Iterator[StepReport]:
        while self._pending:
            yield self._read()

    # -- rare things ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._started = self._last_read = self._last_save = time.perf_counter()
        self._elapsed_before, self._first_iteration = self.header.elapsed, self.header.iteration

    def _elapsed(self) -> float:
        return self._elapsed_before + time.perf_counter() - self._started

    def _advance(self, **changes) -> None:
        self.header = dataclasses.replace(self.header, **changes)

    def _needs_plan(self) -> bool:
        return bool(self.config.train.minutes) and not self.header.planned and len(self._step_seconds) >= PROBE_STEPS

    def _plan(self) -> Plan:
        """Turns the time budget into a number of updates, so that the schedule ends when the time does."""
        step_seconds = statistics.median(self._step_seconds)
        iters = self.iters_in_budget(step_seconds, self._elapsed())
        self._advance(config=self.config.replace({"train.iters": iters}), planned=True)
        return Plan(iters=iters, step_seconds=step_seconds)

    def _end(self) -> str | None:
        """Why the run should end now, if it should."""
        train, header = self.config.train, self.header
        if self._signal:
            return "signal"
        if self._bad_steps >= MAX_BAD_STEPS:
            return "diverged"
        if header.iteration >= train.iters:
            return "iters"
        if train.patience and header.bad_evals >= train.patience:
            return "patience"
        if train.minutes and self._step_seconds:
            last_eval_seconds = self.eval_seconds(statistics.median(self._step_seconds))
            if self._elapsed() + last_eval_seconds >= train.minutes * 60:
                return "minutes"
        return None

    def _evaluation_due(self) -> bool:
        iteration, train = self.header.iteration, self.config.train
        if self.header.last_eval == iteration or self._signal:
            return False
        return iteration % train.eval_every == 0 and (iteration > 0 or train.eval_at_start)

    def _evaluation(self) -> Iterator[Report]:
        """Evaluates, keeps patience and best, and saves a new best. Nothing happens if it is interrupted."""
        start = time.perf_counter()
        batches, average = self._batches(), self.state["optimizer"].get(EMA)
        candidates = [self.state["weights"]] + [average] * bool(average)
        results = [self._evaluate(weights, batches, lambda: self._signal) for weights in candidates]
        if None in results:
            return
        result = min(results, key=lambda r: r.loss)
        self._last_eval_seconds = time.perf_counter() - start
        header, iteration = self.header, self.header.iteration
        if result.loss < header.best_loss:
            self._advance(best_loss=result.loss, best_iteration=iteration, bad_evals=0)
        else:
            self._advance(bad_evals=header.bad_evals + 1)
            train, optimizer = self.config.train, self.config.optimizer
            if train.patience and self.header.bad_evals >= train.patience and header.lr_cuts < optimizer.lr_cuts:
                self._advance(lr_cuts=header.lr_cuts + 1, bad_evals=0)
        self._advance(last_eval=iteration)
        report = EvalReport(
            step=iteration,
            loss=result.loss,
            raw_loss=results[0].loss,
            ppl=result.ppl,
            bits_per_byte=result.bits_per_byte,
            eval_tokens=result.tokens,
            tokens=self.header.tokens,
            seconds=self._last_eval_seconds,
            elapsed=self._elapsed(),
            best_loss=self.header.best_loss,
            best_step=self.header.best_iteration,
            bad_evals=self.header.bad_evals,
            lr_cuts=self.header.lr_cuts,
        )
        yield report
        if report.is_best and iteration > 0:
            yield self._save(BEST, report.averaged)
        self._last_read = time.perf_counter()

    def _batches(self) -> list[np.ndarray]:
        train = self.config.train
        if not train.eval_windows:
            return self._sweep
        windows = self._val.draw(train.seed, rng.EVALUATION, self.header.iteration, train.eval_windows)
        return batches(windows, train.batch_size)

    def _sample_due(self) -> bool:
        iteration, every = self.header.iteration, self.config.train.sample_every
        if self._last_sample == iteration or iteration == 0 or self._signal:
            return False
        return self.header.last_eval == iteration if every == -1 else every > 0 and iteration % every == 0

    def _sample(self) -> SampleDue:
        self._last_sample = self.header.iteration
        self.model.set_weights(self.state["weights"])
        return SampleDue(step=self.header.iteration)

    def _save_due(self) -> bool:
        minutes = self.config.train.save_minutes
        return bool(minutes) and time.perf_counter() - self._last_save >= minutes * 60

    def _save(self, name: str, averaged: bool = False) -> SaveReport:
        """A full disk does not end the run: the last good file stays and the next save tries again."""
        path = self.folder / name
        try:
            store.save(path, self.checkpoint(averaged))
            error = None
        except OutOfRoom as full:
            error = str(full)
        self._last_save = self._last_read = time.perf_counter()
        return SaveReport(step=self.header.iteration, path=str(path), error=error)

    def _finish(self, reason: str) -> Iterator[Report]:
        """Evaluates where the run is complete, saves where there is something new to keep, says why it ended."""
        saved = True
        if reason in ("iters", "minutes") and self.header.last_eval != self.header.iteration:
            yield from self._evaluation()
            reason = "signal" if self._signal else reason
            if self._sample_due():
                yield self._sample()
        if reason != "diverged" and self.header.iteration > 0:
            save = self._save(LATEST)
            saved = save.error is None
            yield save
        yield StopReport(
            step=self.header.iteration,
            reason=reason,
            tokens=self.header.tokens,
            elapsed=self._elapsed(),
            steps=self.header.iteration - self._first_iteration,
            seconds=self._elapsed() - self._elapsed_before,
            best_loss=self.header.best_loss,
            best_step=self.header.best_iteration,
            peak_memory=peak_memory(),
            saved=saved,
        )
