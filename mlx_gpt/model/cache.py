"""Keys and values of the tokens already read, so that decoding computes one token a step.

Shapes: B batch, T new tokens, S block_size, H heads, D head_dim.
"""

from mlx_gpt.backend import mx
from mlx_gpt.config import ModelConfig

# The position, () int32, and each layer's keys and values, (B, H, S, D).
State = tuple[mx.array, list[tuple[mx.array, mx.array]]]


class KVCache:
    """Every layer's keys and values, known up to `position`; `state` is what a compiled graph takes and gives back."""

    def __init__(self, state: State, empty: bool = False):
        self.position, layers = state
        self.layers = list(layers)
        self.empty = empty  # known while tracing: what is read first sees nothing but itself

    @classmethod
    def make(cls, config: ModelConfig, batch_size: int = 1, dtype: mx.Dtype = mx.float32) -> "KVCache":
        shape = (batch_size, config.n_head, config.block_size, config.head_dim)
        layers = [(mx.zeros(shape, dtype), mx.zeros(shape, dtype)) for _ in range(config.n_layer)]
        return cls((mx.array(0), layers), empty=True)

    @property
    def state(self) -> State:
        return self.position, self.layers

    def extend(self, layer: int, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Writes k, v (B, H, T, D) at the position; gives the whole (B, H, S, D). The caller sees that they fit."""
        new = [
            mx.slice_update(old, x, self.position, axes=(2,)) for old, x in zip(self.layers[layer], (k, v), strict=True)
        ]
        self.layers[layer] = tuple(new)
        return self.layers[layer]

    def advance(self, count: int) -> None:
        """Moves on once every layer has read `count` tokens."""
        self.position, self.empty = self.position + count, False
