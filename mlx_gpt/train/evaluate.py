"""Evaluation of weights on a split of the text: loss, perplexity and bits per byte.

Shapes: B windows in a batch, V vocabulary size.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_gpt import rng
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.windows import Windows, batches
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import memory_limit, mx
from mlx_gpt.train.objective import calibration, cross_entropy, entropy
from mlx_gpt.train.parallel import Alone, Group, agree
from mlx_gpt.train.reports import EvalReport, StartReport

START_WINDOWS = 64  # the most windows of Validation.at_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: Mean cross-entropy in nats per predicted token.
        ppl: Perplexity, exp(loss).
        bits_per_byte: Total cross-entropy in bits, divided by the number of UTF-8 bytes of the predicted tokens. Unlike
            the loss, it can be compared between tokenizers.
        entropy: Mean entropy of the predicted distributions in nats. If the predictions are as certain as they are
            accurate, it is near the loss; a lower one means that they are too certain.
        max_logit: Mean over the predicted tokens of the largest absolute logit.
        tokens: Number of predicted tokens.
    """

    loss: float
    ppl: float
    bits_per_byte: float
    entropy: float
    max_logit: float
    tokens: int


class Evaluator:
    """Evaluates weights on batches of windows of one split.

    The evaluation of a batch is compiled once for each batch size, so batches should all have the same size.

    Args:
        model: The network. Its own weights are not used.
        windows: The windows of the split.
        token_bytes: Number of UTF-8 bytes of each token, (V,), for bits per byte.
        dtype: Compute dtype: "float32", "bfloat16" or "float16".
        group: The processes that divide the batches of an evaluation.
    """

    def __init__(self, model, windows: Windows, token_bytes: np.ndarray, dtype: str, group: Group | None = None):
        self._group = group or Alone()
        lengths = mx.array(token_bytes)

        def part_sums(weights, *read):
            """Returns sums over some rows, (5,): nats, entropy, largest logit, number of predicted tokens and bytes."""
            batch = windows.gather(*read)
            logits, _ = model.apply(weights, batch.inputs)
            largest = mx.abs(logits).max(axis=-1).astype(mx.float32)
            nats = cross_entropy(logits, batch.targets)
            each = (nats, entropy(logits), largest, mx.array(1.0), lengths[batch.targets])
            return mx.stack([(values * batch.mask).sum() for values in each])

        def sums(weights, *read):
            weights, parts, rows = model.cast(weights, dtype), [], len(read[0])
            for first, end, lane in divide(rows, rows, lanes(), windows.block_size):
                with mx.stream(lane):
                    parts.append(part_sums(weights, *(a[first:end] for a in read)))
            return sum(parts)

        self._read, self._sums = windows.read, mx.compile(sums)

    def __call__(
        self,
        weights: dict[str, mx.array],
        batches: Sequence[np.ndarray],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Evaluates weights on batches of windows.

        Of several processes, each evaluates every size-th batch. The sums of the batches are exchanged, and every
        process adds them in the order of the batches. The result is therefore that of one process, bit for bit.

        Args:
            weights: The weights by name.
            batches: One or more arrays of windows, (2, B) int32 each, as `Windows.sweep` returns them.
            stopped: Called before each batch. If it returns True on any process, the evaluation is abandoned.

        Returns:
            The evaluation, or None if it was abandoned.
        """
        group, results, previous, is_stopped = self._group, {}, [], False
        for i in range(group.rank, len(batches), group.size):
            if is_stopped := stopped():
                break
            results[i] = self._sums(weights, *map(mx.array, self._read(batches[i])))
            mx.async_eval(results[i])  # this batch is computed while the host waits for the previous one
            mx.eval(previous)
            previous = results[i]
        if agree(group, is_stopped)[0]:
            return None
        sums = np.zeros((len(batches), 5), np.float32)
        for i, result in results.items():
            sums[i] = result
        # On all processes but one, the sums of a batch are 0, so adding those of the processes is exact.
        total = functools.reduce(np.add, np.array(group.sum(mx.array(sums)), np.float64))
        nats, uncertainty, largest, tokens, num_bytes = total.tolist()
        loss = nats / tokens
        return Evaluation(
            loss=loss,
            ppl=_exp(loss),
            bits_per_byte=nats / math.log(2) / max(num_bytes, 1),
            entropy=uncertainty / tokens,
            max_logit=largest / tokens,
            tokens=int(tokens),
        )


def _exp(loss: float) -> float:
    """exp(loss), or infinity if the loss is NaN or at least 700; math.exp overflows from about 709.8 on."""
    return math.exp(loss) if loss < 700 else math.inf


def report_of(
    header: Header, results: Sequence[Evaluation], *, seconds: float, elapsed: float, shares: dict[str, float]
) -> EvalReport:
    """Makes the report of an evaluation.

    Args:
        header: The progress of the run after the evaluation.
        results: The evaluation of the trained weights, and that of their average, if one is kept. The report has the
            values of the lower loss.
        seconds, elapsed, shares: As in EvalReport.
    """
    best = min(results, key=lambda result: result.loss)
    return EvalReport(
        step=header.step,
        loss=best.loss,
        raw_loss=results[0].loss,
        ppl=best.ppl,
        bits_per_byte=best.bits_per_byte,
        eval_tokens=best.tokens,
        tokens=header.tokens,
        seconds=seconds,
        elapsed=elapsed,
        best_loss=header.best_loss,
        best_step=header.best_step,
        bad_evals=header.bad_evals,
        num_lr_cuts=header.num_lr_cuts,
        memory_limit=memory_limit(),
        metrics=calibration(best.loss, best.entropy) | {"logits.max": best.max_logit},
        shares=shares,
    )


class Validation:
    """Evaluates weights on the validation split, for a training run.

    With `train.eval_windows` = 0, every evaluation covers the whole split. Otherwise each evaluation draws that many
    random windows. The draw depends only on the seed and the step, so a resumed run draws the same windows.

    Args:
        evaluator: Evaluates batches of windows.
        windows: The windows of the validation split.
        train: The settings of [train].

    Attributes:
        num_tokens: Number of tokens in the split.
        num_windows: Number of windows in each evaluation. For a whole split, this includes padding windows.
    """

    def __init__(self, evaluator: Evaluator, windows: Windows, train: TrainConfig):
        self._evaluate, self._windows, self._train = evaluator, windows, train
        self._sweep = windows.sweep(train.batch_size)
        self.num_tokens = windows.num_tokens
        self.num_windows = train.eval_windows or len(self._sweep) * train.batch_size

    def __call__(
        self, weights: dict[str, mx.array], step: int, stopped: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Evaluates `weights` at `step`. Returns None if `stopped()` was true before the last batch."""
        return self._evaluate(weights, self._batches(step), stopped)

    def at_start(
        self, weights: dict[str, mx.array], step: int, stopped: Callable[[], bool] = lambda: False
    ) -> StartReport | None:
        """Evaluates `weights` on at most START_WINDOWS random windows, so that it takes no longer on a large split.

        If an evaluation has no more windows than that, the loss is that of an evaluation at `step`.

        Returns:
            The loss before the first update of a process, or None if `stopped()` was true before the last batch.
        """
        start = time.perf_counter()
        few = self.num_windows <= START_WINDOWS
        found = self._evaluate(weights, self._batches(step) if few else self._draw(step, START_WINDOWS), stopped)
        seconds = time.perf_counter() - start
        return found and StartReport(
            step=step,
            start_loss=found.loss,
            ppl=found.ppl,
            eval_tokens=found.tokens,
            seconds=seconds,
            memory_limit=memory_limit(),
        )

    def _batches(self, step: int) -> list[np.ndarray]:
        train = self._train
        if not train.eval_windows:
            return self._sweep
        return self._draw(step, train.eval_windows)

    def _draw(self, step: int, count: int) -> list[np.ndarray]:
        windows = self._windows.draw(self._train.seed, rng.EVALUATION, step, count)
        return batches(windows, self._train.batch_size)
