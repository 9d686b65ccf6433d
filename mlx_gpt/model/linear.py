"""Linear layers of the blocks.

A linear layer may have one parametrization for training and another one for inference. The dense layer, the only one so
far, has the same for both.
"""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Init, Specs, Weight


class Linear(Protocol):
    """A linear map from (..., inputs) to (..., outputs), without bias.

    Args:
        config: The settings of [model].
        inputs: Size of the last axis of the input.
        outputs: Size of the last axis of the output.
    """

    def __init__(self, config: ModelConfig, inputs: int, outputs: int): ...

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        """Returns the specs of the weights. `init` is the initializer of a matrix (outputs, inputs)."""
        ...

    def __call__(self, x: mx.array) -> mx.array: ...

    def pack(self) -> nn.Module:
        """Returns the layer for inference: a module that computes the same map. It may be the layer itself."""
        ...


class Dense(nn.Linear):
    """y = x W^T, with one weight W of shape (outputs, inputs)."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        return {"weight": Weight((outputs, inputs), init, "matrix")}

    def pack(self) -> nn.Module:
        return self


LINEARS: dict[str, type[Linear]] = {"dense": Dense}


def linear_class(config: ModelConfig) -> type[Linear]:
    """Returns the class that `model.linear` names. Raises UserError for an unknown name."""
    return lookup(LINEARS, config.linear, "linear layer", prefix="model.linear=")
