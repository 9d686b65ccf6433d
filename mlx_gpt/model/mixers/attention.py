"""Causal self-attention.

Shapes: B batch, T time, S time with the past, C n_embd, H heads, D head_dim.
"""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.mixers.kernels import Attend
from mlx_gpt.model.norm import rms_norm

ROTARY_BASE = 10000.0


class CausalSelfAttention(nn.Module):
    """Heads of scaled dot products over the past, softmax in float32, no bias."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        self.head_dim = config.head_dim
        self.rotary, self.qk_norm = config.positions == "rotary", config.qk_norm
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, nn.Linear(config.n_embd, config.n_embd, bias=False))

    def __call__(self, x: mx.array, attend: Attend, position: int | mx.array = 0) -> mx.array:
        """`position`: the place of the first token in its context; (B,) where rows differ."""
        B, T, C = x.shape
        q, k, v = (self._heads(w(x)) for w in (self.wq, self.wk, self.wv))  # (B, H, T, D)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if self.rotary:
            q, k = rotate(q, position), rotate(k, position)
        y = attend(q, k, v, self.head_dim**-0.5)
        return self.wo(_swap(y).reshape(B, T, C))

    def _heads(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        return _swap(x.reshape(B, T, self.n_head, self.head_dim))  # (B, H, T, D)


def rotate(x: mx.array, position: int | mx.array = 0) -> mx.array:
    """Turns the two halves of each head of x (B, H, T, D) by its place (arXiv:2104.09864)."""
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=ROTARY_BASE, scale=1.0, offset=position)


def _swap(x: mx.array) -> mx.array:
    """(B, T, H, D) to (B, H, T, D) and back; a single token's numbers stay where they are."""
    B, M, N, D = x.shape
    return x.reshape(B, N, M, D) if 1 in (M, N) else x.swapaxes(1, 2)
