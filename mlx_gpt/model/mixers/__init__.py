"""Mixers: the half of a block that moves information between positions. One row a mixer."""

from mlx_gpt.config.table import lookup
from mlx_gpt.model.mixers.attention import CausalSelfAttention
from mlx_gpt.model.mixers.protocol import Mixer

MIXERS: dict[str, type[Mixer]] = {"attention": CausalSelfAttention}


def mixer_class(name: str) -> type[Mixer]:
    """The row of MIXERS of this name. Raises UserError for an unknown name."""
    return lookup(MIXERS, name, "mixer", prefix="model.mixers=")
