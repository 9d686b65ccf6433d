"""Token ids to logits."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"cost": "cost"})
