"""Sampling: draws the next token from logits, with temperature, top-k and top-p (nucleus sampling, arXiv:1904.09751).

The filters are applied in this order: the logits are divided by the temperature, then top-k keeps the k most likely
tokens, then top-p keeps the most likely of those, by their renormalized probabilities, then min-p (arXiv:2407.01082)
removes the tokens that are much less likely than the most likely one. `penalties` changes the logits before that.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlx_gpt import rng
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

# The arguments of a draw of B tokens: random keys (B, 2) uint32, temperatures (B,) float32, top_p (B,) float32, and
# top_k (B,) int32.
Draw = tuple[mx.array, mx.array, mx.array, mx.array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters of one text.

    Args:
        temperature: Divisor of the logits, 0 to 100. 0 always takes the most likely token.
        top_p: Keep the most likely tokens until their probabilities add up to this, above 0 to 1. 1 keeps all.
        top_k: Keep the k most likely tokens. 0 keeps all.
        min_p: Keep the tokens whose probability is at least min_p times that of the most likely token, 0 to 1. 0 keeps
            all.
        repetition_penalty: Divisor of the positive logits, and factor of the negative logits, of tokens that the prompt
            or the text has, 0.01 to 100. 1 changes nothing.
        frequency_penalty: Subtracted from the logit of a token each time the text has it, -2 to 2.
        presence_penalty: Subtracted once from the logit of each token that the text has, -2 to 2.
        logit_bias: Added to the logits: values from -100 to 100 by token id.

    Raises:
        UserError: A value is out of its range.
    """

    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature={self.temperature} is not allowed; choose 0 (the most likely token) to 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not allowed; choose a value above 0, up to 1 (keep all)")
        if not 0 <= self.top_k < 1 << 31:
            raise UserError(f"top_k={self.top_k} is not allowed; choose 0 (keep all) or a number of tokens")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} is not allowed; choose 0 (keep all) to 1")
        if not 0.01 <= self.repetition_penalty <= 100:
            allowed = "choose 0.01 to 100; 1 changes nothing"
            raise UserError(f"repetition_penalty={self.repetition_penalty} is not allowed; {allowed}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise UserError(f"{name}={getattr(self, name)} is not allowed; choose -2 to 2; 0 changes nothing")
        for id, value in self.logit_bias.items():
            if not (isinstance(id, int | np.integer) and -100 <= value <= 100):
                raise UserError(
                    f"logit_bias={{{id!r}: {value}}} is not allowed; give token ids and -100 to 100 for each"
                )


def to_draw(rows: Sequence[tuple[Sampling, int, int]]) -> Draw:
    """Builds the arguments of a draw of B tokens.

    A row's token is a function of its own entry and its own logits. It is therefore the same in every batch.

    Args:
        rows: (sampling parameters, seed, index of the token among the generated tokens of its text) for each row.
    """
    how = [how for how, _, _ in rows]
    keys = np.stack([rng.host_key(seed, rng.SAMPLING, index) for _, seed, index in rows])
    numbers = (([h.temperature for h in how], np.float32), ([h.top_p for h in how], np.float32))
    counts = ([h.top_k for h in how], np.int32)
    return tuple(mx.array(np.array(values, dtype)) for values, dtype in ((keys, np.uint32), *numbers, counts))


def sample(logits: mx.array, draw: Draw, min_p: mx.array | None = None) -> mx.array:
    """Draws one token for each row.

    Args:
        logits: (B, V), of any floating-point type.
        draw: The arguments from to_draw().
        min_p: The value of min-p for each row, (B, 1) float32. None keeps all tokens.

    Returns:
        Token ids, (B,) int32.
    """
    keys, temperature, top_p, top_k = draw
    logits = logits.astype(mx.float32)
    order = mx.argsort(-logits, axis=-1)  # from here on, columns are ranks: the most likely token first
    # Temperature 0 is replaced by 1 to avoid a division by zero; its result is discarded below.
    scaled = mx.take_along_axis(logits, order, axis=-1) / mx.where(temperature == 0, 1, temperature)[:, None]
    top_k = mx.where(top_k == 0, logits.shape[-1], top_k)[:, None]
    scaled = mx.where(mx.arange(logits.shape[-1]) < top_k, scaled, -mx.inf)
    probs = mx.softmax(scaled, axis=-1)
    # A token is kept if the probabilities before it add up to less than top_p, so the token that crosses top_p is kept.
    # Probabilities 0.5, 0.3, 0.2 give before = 0, 0.5, 0.8; top_p=0.6 keeps the first two. The case top_p=1 is
    # explicit, because rounding can raise `before` to 1.
    before = mx.cumsum(probs, axis=-1) - probs
    kept = (before < top_p[:, None]) | (top_p[:, None] == 1)
    if min_p is not None:
        kept &= probs >= min_p * probs[:, :1]
    drawn = mx.vmap(_categorical)(mx.where(kept, scaled, -mx.inf), keys)
    rank = mx.where(temperature == 0, 0, drawn.astype(mx.int32))
    return mx.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(mx.int32)


def _categorical(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)
