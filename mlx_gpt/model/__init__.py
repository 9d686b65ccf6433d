"""The network: a decoder-only transformer that maps token ids to logits."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"cost": "cost", "packing": "packing"})
