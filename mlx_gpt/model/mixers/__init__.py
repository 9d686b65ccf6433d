"""Mixers: the half of a block that moves information between positions. MIXERS is their table."""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.mixers.attention import CausalSelfAttention
from mlx_gpt.model.mixers.gated_delta import GatedDeltaNet
from mlx_gpt.model.mixers.mla import LatentAttention
from mlx_gpt.model.mixers.protocol import Mixer
from mlx_gpt.model.state import LayerState

MIXERS: dict[str, type[Mixer]] = {
    "attention": CausalSelfAttention,
    "mla": LatentAttention,
    "gated_delta": GatedDeltaNet,
}


def layer_states(config: ModelConfig, rows: int, room: int, dtype: mx.Dtype) -> list[LayerState]:
    """Makes the initial decoding state of each layer, for `rows` rows with room for `room` tokens each.

    The arrays are lazy: they take no memory until they are evaluated.
    """
    return [mixer_class(name).State.zeros(config, rows, room, dtype) for name in config.mixer_of]


def mixer_class(name: str) -> type[Mixer]:
    """Returns the mixer class of this name. Raises UserError for an unknown name."""
    return lookup(MIXERS, name, "mixer", prefix="model.mixers=")
