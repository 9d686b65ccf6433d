"""Train a GPT from scratch on Apple Silicon, with MLX.

import mlx_gpt
run = mlx_gpt.load("runs/model-l-shakespeare")
for piece in mlx_gpt.generate(run, "ROMEO:"):
    print(piece, end="")

Importing this package loads nothing else. MLX is loaded by the first use of a name.
"""

import sys
from types import ModuleType

from mlx_gpt.lazy import attach
from mlx_gpt.version import __version__ as __version__

__getattr__, __dir__, __all__ = attach(
    __name__,
    {name: "api" for name in ("Run", "convert", "evaluate", "export", "generate", "load", "push", "train")},
)


class _Package(ModuleType):
    """This package, in which `train` is the function.

    Python binds a subpackage to its name here when it is imported, and `mlx_gpt/train/` would hide the function. It
    stays importable: `from mlx_gpt.train import reports`.
    """

    def __setattr__(self, name: str, value) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
