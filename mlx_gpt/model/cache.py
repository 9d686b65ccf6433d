"""Keys and values of the tokens already read, so that decoding computes one token a step."""

from mlx_gpt.backend import mx
from mlx_gpt.config import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, H, block_size, D), filled up to `length`."""

    def __init__(self, block_size: int):
        self.block_size = block_size
        self.length = 0
        self.keys = self.values = None

    def extend(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Appends k, v (B, H, T, D); returns everything so far, (B, H, S, D)."""
        B, H, T, D = k.shape
        if self.keys is None:
            self.keys = mx.zeros((B, H, self.block_size, D), k.dtype)
            self.values = mx.zeros((B, H, self.block_size, D), v.dtype)
        end = self.length + T
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """A cache for each layer; `offset` is the position of the next token."""

    def __init__(self, config: ModelConfig):
        self.layers = [LayerCache(config.block_size) for _ in range(config.n_layer)]

    @property
    def offset(self) -> int:
        return self.layers[0].length
