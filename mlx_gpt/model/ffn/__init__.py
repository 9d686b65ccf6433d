"""Feed-forward networks: the half of a block that computes each position independently. FFNS is their table."""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.model.ffn.dense import ReLU2, SwiGLU
from mlx_gpt.model.ffn.moe import MixtureOfExperts
from mlx_gpt.model.ffn.protocol import FFN

FFNS: dict[str, type[FFN]] = {"relu2": ReLU2, "swiglu": SwiGLU, "moe": MixtureOfExperts}


def ffn_class(config: ModelConfig) -> type[FFN]:
    """Returns the class that `model.ffn` names. Raises UserError for an unknown name."""
    return lookup(FFNS, config.ffn, "feed-forward network", prefix="model.ffn=")
