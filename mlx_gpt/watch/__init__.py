"""Shows the reports of a run on the terminal, writes them to metrics.jsonl, and compares runs."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"RunConsole": "console", "Terminal": "console"})
