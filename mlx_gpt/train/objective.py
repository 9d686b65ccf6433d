"""The protocol of training objectives, and the cross-entropy objective. The table of objectives is in objectives.py.

Shapes: B rows (sequences) in a batch, T tokens in a row, V vocabulary size.
"""

from typing import NamedTuple, Protocol

from mlx_gpt.config.schema import Config
from mlx_gpt.data.windows import Batch
from mlx_gpt.device.mlx import mx

Scalars = dict[str, mx.array]  # () arrays by name


class Objective(Protocol):
    """A training objective: a loss that is a sum over a batch, divided by a count.

    A batch may be computed in parts: on several CPU streams, by gradient accumulation, or on several machines. Each
    part has its own backward pass, and the gradients of the parts are added. For this to give the gradient of the whole
    batch, the sum of every part must be divided by the count of the whole batch. The count is therefore a method of its
    own, which is called on the whole batch before any part is computed.

    Example: a batch in two parts with 3 and 1 predicted tokens, whose losses sum to 6 and 4. The loss is 6/4 + 4/4 =
    2.5 nats per token. The average of the means of the parts, (6/3 + 4/1) / 2 = 3, would be wrong.

    Args:
        config: The settings of the run. An objective may read its own settings from it.
    """

    def __init__(self, config: Config): ...

    def count(self, batch: NamedTuple) -> mx.array:
        """Returns the divisor of the sum, () float32: for example, the number of predicted tokens."""
        ...

    def __call__(self, logits: mx.array, aux: Scalars, batch: NamedTuple) -> tuple[mx.array, Scalars]:
        """Computes the sum to be minimized, and sums to be reported, for a batch or some rows of one.

        Args:
            logits: (B, T, V), of any floating-point dtype.
            aux: Auxiliary losses or statistics from the model, () each. They are means over the tokens of these rows
                and over the layers. To make one part of the loss, multiply it by `self.count(batch)` and add
                it to the sum.
            batch: The batch that the source gathered, or some of its rows.

        Returns:
            The sum to be minimized, () float32, and a dictionary of sums to be reported, () float32 each. The step
            divides the latter by the count, too. They become fields of metrics.jsonl, so their names must differ from
            the fields of StepReport.
        """
        ...


# The settings that are weights of auxiliary outputs, and the names of these outputs.
WEIGHTS = {"balance_weight": "balance", "router_z_weight": "router_z"}


class CrossEntropy:
    """Mean cross-entropy of the next token, in nats, over the targets whose mask is 1.

    The auxiliary losses of mixtures of experts are added with the weights `train.balance_weight` and
    `train.router_z_weight`. The entropy of the predictions is subtracted with the weight `train.entropy_weight`. The
    numbers of `calibration` and all auxiliary outputs are reported.
    """

    def __init__(self, config: Config):
        self.config = config.train

    def count(self, batch: Batch) -> mx.array:
        return batch.mask.sum()

    def __call__(self, logits: mx.array, aux: Scalars, batch: Batch) -> tuple[mx.array, Scalars]:
        weight, count = self.config.entropy_weight, self.count(batch)
        loss = (cross_entropy(logits, batch.targets) * batch.mask).sum()
        uncertainty = (entropy(logits if weight else mx.stop_gradient(logits)) * batch.mask).sum()
        total = loss - weight * uncertainty if weight else loss
        sums = calibration(loss, uncertainty) | {name: value * count for name, value in aux.items()}
        for setting, name in WEIGHTS.items():
            if name in sums:
                total = total + getattr(self.config, setting) * sums[name]
        return total, sums


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Returns the cross-entropy of each target, -log softmax(logits)[target], in nats.

    Args:
        logits: (B, T, V), of any floating-point dtype. The result is computed in float32.
        targets: Token ids, (B, T).

    Returns:
        (B, T) float32.
    """
    return mx.fast.cross_entropy(logits.astype(mx.float32), targets)


def entropy(logits: mx.array) -> mx.array:
    """Returns the entropy of each predicted distribution, -sum(p log p), in nats.

    Args:
        logits: (B, T, V), of any floating-point dtype. The result is computed in float32.

    Returns:
        (B, T) float32, from 0 to log(V).
    """
    logits = logits.astype(mx.float32)
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return -(mx.exp(log_p) * log_p).sum(axis=-1)


def calibration(ce, h) -> dict:
    """Returns the reported numbers for a cross-entropy and an entropy, which are sums or means over the same tokens.

    For a network that is as certain as it is accurate, H - CE is near 0. A network that is too certain has a negative
    value.
    """
    return {"ce": ce, "H": h, "H-CE": h - ce}
