"""Residual streams: how the mixer and the feed-forward network of a block read from the stream and write to it.

The residual stream s is one array, of the shape that `expand` returns. In the default network it is x (B, T, C), and
writing adds to it. Other forms can hold more than one value per channel, for example.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd.
"""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.mhc import MixedStreams
from mlx_gpt.model.specs import Specs


class Residual(Protocol):
    """Connects one half of a block, its mixer or its feed-forward network, to the residual stream.

    Only the first unit's `expand` and the last unit's `collapse` are called.

    Args:
        config: The settings of [model].
        unit: Number of the half, from 0 to 2 n_layer - 1: 2i for the mixer and 2i + 1 for the feed-forward network of
            layer i.
    """

    def __init__(self, config: ModelConfig, unit: int): ...

    @staticmethod
    def specs(config: ModelConfig, unit: int) -> Specs: ...

    def expand(self, x: mx.array) -> mx.array:
        """Returns the initial stream for the token embeddings x (B, T, C)."""
        ...

    def read(self, s: mx.array) -> mx.array:
        """Returns the input of this half of the block, (B, T, C). The block normalizes it."""
        ...

    def write(self, s: mx.array, y: mx.array) -> mx.array:
        """Returns the stream s after the output y (B, T, C) of this half was written to it."""
        ...

    def collapse(self, s: mx.array) -> mx.array:
        """Returns the input of the final norm and the head, (B, T, C)."""
        ...


class Add(nn.Module):
    """The usual residual connection: s + y. It has no weights."""

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


RESIDUALS: dict[str, type[Residual]] = {"add": Add, "mhc": MixedStreams}


def residual_class(config: ModelConfig) -> type[Residual]:
    """Returns the class that `model.residual` names. Raises UserError for an unknown name."""
    return lookup(RESIDUALS, config.residual, "residual stream", prefix="model.residual=")
