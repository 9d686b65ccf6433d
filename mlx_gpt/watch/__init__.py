"""Reports to eyes."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"RunConsole": "console", "Terminal": "console"})
