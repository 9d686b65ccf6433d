"""Keys and values of the tokens already read, so that decoding computes one token a step.

Shapes: B batch, T new tokens, S block_size, H heads, D head_dim.
"""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx

# Each row's position, (B,) int32, and each layer's keys and values, (B, H, S, D).
State = tuple[mx.array, list[tuple[mx.array, mx.array]]]


class KVCache:
    """Every layer's keys and values, each row's known up to its position.

    `state` is what a compiled graph takes and gives back.
    """

    def __init__(self, state: State, empty: bool = False):
        self.positions, layers = state
        self.layers = list(layers)
        self.empty = empty  # known while tracing: what is read first sees nothing but itself

    @classmethod
    def make(cls, config: ModelConfig, batch_size: int = 1, dtype: mx.Dtype = mx.float32) -> "KVCache":
        shape = (batch_size, config.n_head, config.block_size, config.head_dim)
        layers = [(mx.zeros(shape, dtype), mx.zeros(shape, dtype)) for _ in range(config.n_layer)]
        return cls((mx.zeros(batch_size, mx.int32), layers), empty=True)

    @property
    def state(self) -> State:
        return self.positions, self.layers

    def places(self, count: int) -> mx.array:
        """The next `count` places of each row, (B, T)."""
        return self.positions[:, None] + mx.arange(count)

    def extend(self, layer: int, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Writes k, v (B, H, T, D) at the next places; gives the whole (B, H, S, D). The caller sees that they fit."""
        self.layers[layer] = tuple(self._write(old, x) for old, x in zip(self.layers[layer], (k, v), strict=True))
        return self.layers[layer]

    def _write(self, old: mx.array, new: mx.array) -> mx.array:
        B, _, T, _ = new.shape
        if self.empty:
            return mx.slice_update(old, new, mx.array(0), axes=(2,))
        whole = old[:]
        whole[mx.arange(B)[:, None], :, self.places(T)] = new.swapaxes(1, 2)
        return whole

    def advance(self, count: int) -> None:
        """Moves on once every layer has read `count` tokens."""
        self.positions, self.empty = self.positions + count, False
