"""The Python interface: what the command line does, as functions. `mlx_gpt` exports all of it."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Run": "models",
        "load": "models",
        "generate": "models",
        "stream": "models",
        "train": "training",
        "evaluate": "evaluation",
        "convert": "conversion",
        "export": "exporting",
        "push": "exporting",
    },
)
