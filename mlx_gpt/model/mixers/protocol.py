"""The protocol of mixers.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd.
"""

from typing import Protocol, runtime_checkable

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.specs import Specs
from mlx_gpt.model.state import LayerState


@runtime_checkable
class Mixer(Protocol):
    """Moves information between the positions of a row, from earlier to later positions only.

    Args:
        config: The settings of [model].
        speed: How to compute. Results differ by rounding only.

    Attributes:
        State: The class of the layer's state in decoding, such as the keys and values of attention.
    """

    State: type[LayerState]

    def __init__(self, config: ModelConfig, speed: SpeedConfig): ...

    @staticmethod
    def specs(config: ModelConfig) -> Specs: ...

    @staticmethod
    def token_flops(config: ModelConfig) -> float:
        """Returns the floating-point operations of a forward pass per token, for the estimate of the training cost.

        Products with weights of the roles "matrix" and "matrices" are not included: they are counted from the specs.
        """
        ...

    def __call__(self, x: mx.array, state: LayerState | None, positions: Positions, valid: mx.array | None) -> mx.array:
        """Computes the output for the tokens of a batch.

        Args:
            x: (B, T, C).
            state: The state of the layer after the earlier tokens of each row. The mixer updates it in place. None in
                training.
            positions: The positions of the tokens. If `positions.at_start`, there are no earlier tokens, and the mixer
                must ignore the contents of `state`.
            valid: (B,) int32, the number of real tokens in each row; the tokens after them are padding. The updated
                state must be the one after the last real token. None if there is no padding.

        Returns:
            (B, T, C).
        """
        ...
