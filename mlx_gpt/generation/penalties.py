"""Logit bias, penalties and min-p: options of sampling that depend on the tokens of a text, or that few texts use.

The compiled functions that compute logits draw every token without these options. If a row of the batch uses one of
them, the tokens are drawn a second time from the same logits, and the rows that use them take the second draw. Rows and
batches without the options are therefore computed as if the options did not exist.

The logits of a row that uses the options are changed in this order, before temperature, top-k, top-p and min-p:

1. logit_bias[i] is added to the logit of id i.
2. The logits of all tokens of the prompt and of the text so far are divided by the repetition penalty if they are
   positive, and multiplied by it if they are negative (arXiv:1909.05858).
3. frequency_penalty * n and, if n > 0, presence_penalty are subtracted from the logit of each token, where n is how
   often the text so far has it. The prompt does not count.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.sampling import Draw, Sampling, sample


class Penalties:
    """The options of one text, and the numbers of its tokens so far.

    Args:
        how: Sampling parameters. The ids of their logit_bias must be in the vocabulary.
        prompt: Token ids of the prompt.
        vocab_size: V.
    """

    def __init__(self, how: Sampling, prompt: Sequence[int], vocab_size: int):
        self.factors = how.repetition_penalty, how.frequency_penalty, how.presence_penalty, how.min_p
        self.bias, self.counts = np.zeros(vocab_size, np.float32), np.zeros(vocab_size, np.int32)
        self.bias[list(how.logit_bias)] = list(how.logit_bias.values())
        self.seen = np.zeros(vocab_size, np.bool_)  # the ids of the prompt and of the text
        self.seen[list(prompt)] = True

    def add(self, id: int) -> None:
        """Counts a token of the text."""
        self.seen[id] = True
        self.counts[id] += 1


class PenaltyBatch(NamedTuple):
    """The options of B rows, as arrays. In a row that uses none of them, every value is neutral."""

    used: mx.array  # (B,) bool: whether the row uses one of the options
    uncounted: mx.array  # (B,) bool: whether the counts lack the last token, which the device is still computing
    factors: mx.array  # (4, B) float32: repetition, frequency and presence penalty, min_p
    bias: mx.array  # (B, V) float32
    counts: mx.array  # (B, V) int32
    seen: mx.array  # (B, V) bool


def penalties_of(how: Sampling, prompt: Sequence[int], vocab_size: int) -> Penalties | None:
    """Returns the Penalties of a text, or None if it uses none of the options."""
    without = Sampling(temperature=how.temperature, top_p=how.top_p, top_k=how.top_k)
    return None if how == without else Penalties(how, prompt, vocab_size)


def to_batch(rows: Sequence[tuple[Penalties | None, bool]]) -> PenaltyBatch | None:
    """Builds the arrays of B rows, or returns None if no row uses one of the options.

    Args:
        rows: For each row, the Penalties, and whether they lack the row's last token.
    """
    used = [penalties for penalties, _ in rows if penalties]
    if not used:
        return None
    neutral = Penalties(Sampling(), (), len(used[0].counts))
    texts = [penalties or neutral for penalties, _ in rows]
    columns = [np.array(text.factors, np.float32) for text in texts]
    stacked = [np.stack([getattr(text, name) for text in texts]) for name in ("bias", "counts", "seen")]
    flags = np.array([(penalties is not None, lacks) for penalties, lacks in rows]).T
    return PenaltyBatch(*(mx.array(array) for array in (*flags, np.stack(columns, axis=1), *stacked)))


def redraw(logits: mx.array, draw: Draw, batch: PenaltyBatch, last: mx.array) -> mx.array:
    """Draws one token for each row, as `sample` does, with the options of the batch.

    Args:
        logits: (B, V), of any floating-point type.
        draw: The arguments of the draw.
        batch: The options.
        last: The last token of each row, (B,) int32. It is added to the counts of the rows that lack it.

    Returns:
        Token ids, (B,) int32.
    """
    repetition, frequency, presence, min_p = batch.factors[:, :, None]
    last = mx.where(batch.uncounted, last, -1)
    counts = batch.counts + (mx.arange(logits.shape[-1]) == last[:, None])
    logits = logits.astype(mx.float32) + batch.bias
    repeated = mx.where(logits > 0, logits / repetition, logits * repetition)
    logits = mx.where(batch.seen | (counts > 0), repeated, logits)
    return sample(logits - frequency * counts - presence * (counts > 0), draw, min_p)
