"""What a training objective is, and cross-entropy. The table of objectives is in objectives.py.

Shapes: B batch, T time, V vocabulary.
"""

from typing import NamedTuple, Protocol

from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.windows import Batch
from mlx_gpt.device.mlx import mx

Scalars = dict[str, mx.array]


class Objective(Protocol):
    """A cost that is a sum over a batch divided by a count.

    The count comes first and by itself, so that a batch which is computed in parts, on lanes or on several machines, is
    divided by the count of the whole before its gradient is taken.

    Args:
        config: The settings of [train], for objectives that have some.
    """

    def __init__(self, config: TrainConfig): ...

    def count(self, batch: NamedTuple) -> mx.array:
        """What the sum is divided by, () float32, as the number of predicted tokens."""
        ...

    def __call__(self, logits: mx.array, aux: Scalars, batch: NamedTuple) -> tuple[mx.array, Scalars]:
        """The sum to be minimized and further sums to be reported, all () float32.

        Args:
            logits: (B, T, V), of any type.
            aux: The model's own scalars, means over these rows. Multiply them by `self.count(batch)` to add them to
                the sum.
            batch: What the source gathered, or some rows of it.

        The further sums are divided by the count, too, and become fields of metrics.jsonl. They may not have the name
        of a field of StepReport.
        """
        ...


class CrossEntropy:
    """Nats of each next token, where the batch's mask is 1."""

    def __init__(self, config: TrainConfig):
        pass

    def count(self, batch: Batch) -> mx.array:
        return batch.mask.sum()

    def __call__(self, logits: mx.array, aux: Scalars, batch: Batch) -> tuple[mx.array, Scalars]:
        return (cross_entropy(logits, batch.targets) * batch.mask).sum(), {}


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], (B, T) float32, of logits (B, T, V) of any type."""
    return mx.fast.cross_entropy(logits.astype(mx.float32), targets)
