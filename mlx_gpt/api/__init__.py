"""The Python interface: a function for each thing that the command line does. `mlx_gpt` exports them all."""

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
