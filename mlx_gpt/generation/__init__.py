"""Text generation: samples tokens from logits, and decodes the tokens into text."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"Sampling": "sampling"})
