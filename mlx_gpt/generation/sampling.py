"""From logits to the next token: temperature, top-k, nucleus (arXiv:1904.09751)."""

from dataclasses import dataclass

from mlx_gpt.backend import mx
from mlx_gpt.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to draw. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep them all."""

    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature={self.temperature} is not allowed; 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not allowed; above 0 to 1 (keep all)")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is not allowed; 0 (keep all) or a number of tokens")


def sample(logits: mx.array, key: mx.array, how: Sampling) -> mx.array:
    """One token id, () int32, from logits (V,)."""
    logits = logits.astype(mx.float32)
    if how.temperature == 0:
        return mx.argmax(logits).astype(mx.int32)
    order = mx.argsort(-logits)
    logits = logits[order] / how.temperature  # likeliest first
    if how.top_k:
        logits = logits[: how.top_k]
    if how.top_p < 1:
        probs = mx.softmax(logits)
        before = mx.cumsum(probs) - probs  # the token that crosses top_p is kept
        logits = mx.where(before < how.top_p, logits, -mx.inf)
    return order[mx.random.categorical(logits, key=key)].astype(mx.int32)
