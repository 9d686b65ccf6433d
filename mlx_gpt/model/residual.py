"""Residual streams: how the halves of a block read the stream and write to it.

Shapes: B batch, T time, C n_embd. The stream s is one array, of the shape that `expand` gives it.
"""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Specs


class Residual(Protocol):
    """One unit for each half of a block. The first unit expands, the last one collapses.

    `unit` counts the units from 0 to 2 n_layer - 1.
    """

    def __init__(self, config: ModelConfig, unit: int): ...

    @staticmethod
    def specs(config: ModelConfig, unit: int) -> Specs: ...

    def expand(self, x: mx.array) -> mx.array:
        """The stream that begins as the embedding x (B, T, C)."""
        ...

    def read(self, s: mx.array) -> mx.array:
        """What this half of the block works on, (B, T, C)."""
        ...

    def write(self, s: mx.array, y: mx.array) -> mx.array:
        """The stream with the output y (B, T, C) of this half."""
        ...

    def collapse(self, s: mx.array) -> mx.array:
        """What the head reads, (B, T, C)."""
        ...


class Add(nn.Module):
    """s + y."""

    def __init__(self, config: ModelConfig, unit: int):
        super().__init__()

    @staticmethod
    def specs(config: ModelConfig, unit: int) -> Specs:
        return {}

    def expand(self, x: mx.array) -> mx.array:
        return x

    def read(self, s: mx.array) -> mx.array:
        return s

    def write(self, s: mx.array, y: mx.array) -> mx.array:
        return s + y

    def collapse(self, s: mx.array) -> mx.array:
        return s


RESIDUALS: dict[str, type[Residual]] = {"add": Add}


def residual_class(config: ModelConfig) -> type[Residual]:
    """The row of RESIDUALS that `model.residual` names. Raises UserError for an unknown name."""
    return lookup(RESIDUALS, config.residual, "residual stream", prefix="model.residual=")
