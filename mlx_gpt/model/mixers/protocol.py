"""What a mixer is to its block."""

from typing import Protocol, runtime_checkable

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.specs import Specs
from mlx_gpt.model.state import LayerState


@runtime_checkable
class Mixer(Protocol):
    """Moves information between the positions of a row, forward in time only.

    `State` is the class of what it remembers while decoding. `speed` says how to compute; results differ by rounding
    only.
    """

    State: type[LayerState]

    def __init__(self, config: ModelConfig, speed: SpeedConfig): ...

    @staticmethod
    def specs(config: ModelConfig) -> Specs: ...

    @staticmethod
    def token_flops(config: ModelConfig) -> float:
        """Floating-point operations of a forward pass, per token, that are not products with weights of the roles
        matrix and matrices.
        """
        ...

    def __call__(self, x: mx.array, state: LayerState | None, positions: Positions, valid: mx.array | None) -> mx.array:
        """Mixes x (B, T, C) into y (B, T, C).

        Args:
            x: The tokens' vectors.
            state: What the layer remembers of each row; the mixer updates it. None in training.
            positions: Where the tokens stand. Where `positions.at_start`, nothing was read before, and what `state`
                holds is to be ignored.
            valid: (B,) int32, the number of real tokens in each row; those after them are padding. The state must be
                the one after the last real token. None where all tokens are real.
        """
        ...
