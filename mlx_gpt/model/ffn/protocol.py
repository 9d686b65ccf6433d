"""What a feed-forward network is to its block."""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.specs import Specs

# Scalars by name, each a mean over tokens, as a router's balance. The objective receives their sums over the layers.
Aux = dict[str, mx.array]


class FFN(Protocol):
    """x (B, T, C) to (y, aux), y of the same shape. Works on each position alone."""

    def __init__(self, config: ModelConfig): ...

    @staticmethod
    def specs(config: ModelConfig) -> Specs: ...

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]: ...
