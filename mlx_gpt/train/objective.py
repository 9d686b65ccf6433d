"""Training objectives: what a model's logits for a batch cost. One row an objective.

Shapes: B batch, T time, V vocabulary.
"""

from typing import NamedTuple, Protocol

from mlx_gpt.config.table import lookup
from mlx_gpt.data.windows import Batch
from mlx_gpt.device.mlx import mx

Scalars = dict[str, mx.array]


class Objective(Protocol):
    """A cost that is a sum over a batch divided by a count.

    The count comes first and by itself, so that a batch which is computed in parts, on lanes or on several machines, is
    divided by the count of the whole before its gradient is taken.
    """

    def count(self, batch: NamedTuple) -> mx.array:
        """What the sum is divided by, () float32, as the number of predicted tokens."""
        ...

    def __call__(self, logits: mx.array, aux: Scalars, batch: NamedTuple) -> tuple[mx.array, Scalars]:
        """The sum to be minimised and further sums to be reported, all () float32.

        Args:
            logits: (B, T, V), of any type.
            aux: The model's own scalars, means over the batch; multiply by the count to make them part of the sum.
            batch: What the source gathered, or some rows of it.
        """
        ...


class CrossEntropy:
    """Nats of each next token, where the batch's mask is 1."""

    def count(self, batch: Batch) -> mx.array:
        return batch.mask.sum()

    def __call__(self, logits: mx.array, aux: Scalars, batch: Batch) -> tuple[mx.array, Scalars]:
        return (cross_entropy(logits, batch.targets) * batch.mask).sum(), {}


OBJECTIVES: dict[str, type[Objective]] = {"cross-entropy": CrossEntropy}


def make_objective(name: str) -> Objective:
    """The objective that `train.objective` names. Raises UserError for an unknown name."""
    return lookup(OBJECTIVES, name, "objective", prefix="train.objective=")()


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """-log softmax(logits)[target], (B, T) float32, of logits (B, T, V) of any type."""
    return mx.fast.cross_entropy(logits.astype(mx.float32), targets)
