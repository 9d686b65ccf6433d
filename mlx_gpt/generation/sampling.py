"""Sampling: the next token from logits, by temperature, top-k and nucleus (arXiv:1904.09751).

Shapes: B batch, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_gpt import rng
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

# The arrays of a draw of B tokens: keys (B, 2), then temperatures, top_p and top_k, (B,) each.
Draw = tuple[mx.array, mx.array, mx.array, mx.array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to draw a token. Temperature 0 takes the likeliest one. top_k=0 and top_p=1 keep all of them.

    Raises:
        UserError: A value is out of its range.
    """

    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature={self.temperature} is not allowed; 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not allowed; above 0 to 1 (keep all)")
        if not 0 <= self.top_k < 1 << 31:
            raise UserError(f"top_k={self.top_k} is not allowed; 0 (keep all) or a number of tokens")


def to_draw(rows: Sequence[tuple[Sampling, int, int]]) -> Draw:
    """The arrays of a draw of B tokens, one for each (how, seed, index).

    `index` counts the tokens of a text. A row's token is a function of its own entry and its own logits, so it is the
    same in every batch.
    """
    how = [how for how, _, _ in rows]
    keys = np.stack([rng.host_key(seed, rng.SAMPLING, index) for _, seed, index in rows])
    numbers = (([h.temperature for h in how], np.float32), ([h.top_p for h in how], np.float32))
    counts = ([h.top_k for h in how], np.int32)
    return tuple(mx.array(np.array(values, dtype)) for values, dtype in ((keys, np.uint32), *numbers, counts))


def sample(logits: mx.array, draw: Draw) -> mx.array:
    """Token ids, (B,) int32, from logits (B, V)."""
    keys, temperature, top_p, top_k = draw
    logits = logits.astype(mx.float32)
    order = mx.argsort(-logits, axis=-1)  # likeliest first
    scaled = mx.take_along_axis(logits, order, axis=-1) / mx.where(temperature == 0, 1, temperature)[:, None]
    top_k = mx.where(top_k == 0, logits.shape[-1], top_k)[:, None]
    scaled = mx.where(mx.arange(logits.shape[-1]) < top_k, scaled, -mx.inf)
    probs = mx.softmax(scaled, axis=-1)
    before = mx.cumsum(probs, axis=-1) - probs  # the token that crosses top_p is kept
    kept = (before < top_p[:, None]) | (top_p[:, None] == 1)
    drawn = mx.vmap(_categorical)(mx.where(kept, scaled, -mx.inf), keys)
    rank = mx.where(temperature == 0, 0, drawn.astype(mx.int32))
    return mx.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(mx.int32)


def _categorical(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)
