"""The protocol of feed-forward networks."""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.specs import Specs

# Auxiliary outputs: () arrays by name, each a mean over tokens. An example is a router's load-balancing loss. The model
# passes their means over the layers to the training objective.
Aux = dict[str, mx.array]


class FFN(Protocol):
    """A feed-forward network. It computes each position independently of the others."""

    def __init__(self, config: ModelConfig): ...

    @staticmethod
    def specs(config: ModelConfig) -> Specs: ...

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        """Returns the output for x (B, T, C), of the same shape, and the auxiliary outputs."""
        ...
