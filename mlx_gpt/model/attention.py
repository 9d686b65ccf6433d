"""Causal self-attention.

Shapes: B batch, T time, S time with the cached past, C n_embd, H heads, D head_dim.
"""

from mlx_gpt.backend import mx, nn
from mlx_gpt.config import ModelConfig
from mlx_gpt.model.cache import LayerCache


class CausalSelfAttention(nn.Module):
    """Heads of scaled dot products over the past, softmax in float32, no bias."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head = config.n_head
        self.head_dim = config.head_dim
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, nn.Linear(config.n_embd, config.n_embd, bias=False))

    def __call__(self, x: mx.array, cache: LayerCache | None = None) -> mx.array:
        B, T, C = x.shape
        q, k, v = (self._heads(w(x)) for w in (self.wq, self.wk, self.wv))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D)
        # One query sees all of the past; several need the causal mask, aligned to the last key.
        mask = "causal" if T > 1 else None
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)
        return self.wo(y.transpose(0, 2, 1, 3).reshape(B, T, C))

    def _heads(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        return x.reshape(B, T, self.n_head, self.head_dim).transpose(0, 2, 1, 3)  # (B, H, T, D)
