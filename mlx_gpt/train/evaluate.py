"""Loss, perplexity and bits per byte over a split.

Shapes: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mlx_gpt import rng
from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.windows import Windows, batches
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import cast, mx
from mlx_gpt.train.objective import cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Loss in nats per token, perplexity, bits per UTF-8 byte, and the number of predicted tokens."""

    loss: float
    ppl: float
    bits_per_byte: float
    tokens: int


class Evaluator:
    """Sums the loss of a model over windows of one split, in one compiled graph of fixed shape.

    Args:
        model: The network.
        windows: The split.
        token_bytes: UTF-8 bytes of each id, (V,), for bits per byte.
        dtype: Compute type.
    """

    def __init__(self, model, windows: Windows, token_bytes: np.ndarray, dtype: str):
        lengths = mx.array(token_bytes)

        def part_sums(weights, *read):
            batch = windows.gather(*read)
            logits, _ = model.apply(weights, batch.inputs)
            losses = cross_entropy(logits, batch.targets) * batch.mask
            num_bytes = lengths[batch.targets] * batch.mask
            return mx.stack([losses.sum(), batch.mask.sum(), num_bytes.sum()])

        def sums(weights, *read):
            weights, parts, rows = cast(weights, dtype), [], len(read[0])
            for first, end, lane in divide(rows, rows, lanes(), windows.block_size):
                with mx.stream(lane):
                    parts.append(part_sums(weights, *(a[first:end] for a in read)))
            return sum(parts)

        self._read, self._sums = windows.read, mx.compile(sums)

    def __call__(
        self,
        weights: dict[str, mx.array],
        batches: Iterable[np.ndarray],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Evaluates batches of windows, (2, B) each. Returns None if `stopped` became true before the last of them.

        A batch is submitted before the result of the one before it is read.
        """
        total, previous = np.zeros(3), None
        for windows in batches:
            if stopped():
                return None
            current = self._sums(weights, *map(mx.array, self._read(windows)))
            mx.async_eval(current)
            total += 0 if previous is None else np.array(previous, np.float64)
            previous = current
        nats, tokens, num_bytes = (total + np.array(previous, np.float64)).tolist()
        loss = nats / tokens
        return Evaluation(
            loss=loss, ppl=_exp(loss), tokens=int(tokens), bits_per_byte=nats / math.log(2) / max(num_bytes, 1)
        )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


class Validation:
    """The evaluations of a run: over the whole split, or over windows that each evaluation draws."""

    def __init__(self, evaluator: Evaluator, windows: Windows, train: TrainConfig):
        self._evaluate, self._windows, self._train = evaluator, windows, train
        self._sweep = windows.sweep(train.batch_size)
        self.num_tokens = windows.num_tokens
        self.num_windows = train.eval_windows or len(self._sweep) * train.batch_size

    def __call__(
        self, weights: dict[str, mx.array], step: int, stopped: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """The evaluation of `weights` at `step`, or None if `stopped` became true before its end."""
        return self._evaluate(weights, self._batches(step), stopped)

    def _batches(self, step: int) -> list[np.ndarray]:
        train = self._train
        if not train.eval_windows:
            return self._sweep
        windows = self._windows.draw(train.seed, rng.EVALUATION, step, train.eval_windows)
        return batches(windows, train.batch_size)
