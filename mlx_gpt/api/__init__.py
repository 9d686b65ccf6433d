"""The Python interface: functions to train, load, evaluate, run, convert, export and upload models.

`mlx_gpt` exports all of them except `stream` and `targets`, which the command line uses.
"""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Run": "models",
        "load": "models",
        "generate": "models",
        "stream": "models",
        "train": "training",
        "rl": "training",
        "evaluate": "evaluation",
        "evaluate_code": "coding",
        "evaluate_text": "evaluation",
        "convert": "conversion",
        "export": "exporting",
        "push": "exporting",
        "targets": "exporting",
    },
)
