"""Linear layers: the form in which the blocks' matrices are trained, and the form in which they are used afterwards."""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Init, Specs, Weight


class Linear(Protocol):
    """x (..., inputs) to (..., outputs), without bias."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int): ...

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs: ...

    def __call__(self, x: mx.array) -> mx.array: ...

    def pack(self) -> nn.Module:
        """The layer in the form used for inference; itself where training and inference share one form."""
        ...


class Dense(nn.Linear):
    """x W^T with a weight W of shape (outputs, inputs)."""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    @staticmethod
    def specs(config: ModelConfig, inputs: int, outputs: int, init: Init) -> Specs:
        return {"weight": Weight((outputs, inputs), init, "matrix")}

    def pack(self) -> nn.Module:
        return self


LINEARS: dict[str, type[Linear]] = {"dense": Dense}


def linear_class(config: ModelConfig) -> type[Linear]:
    """The row of LINEARS that `model.linear` names. Raises UserError for an unknown name."""
    return lookup(LINEARS, config.linear, "linear layer", prefix="model.linear=")
