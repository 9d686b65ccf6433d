"""Train a GPT from scratch on Apple Silicon, with MLX.

import mlx_gpt
run = mlx_gpt.load("runs/model-l-shakespeare")
for piece in mlx_gpt.generate(run, "ROMEO:"):
    print(piece, end="")

`import mlx_gpt` alone does not load MLX. The module that implements a public name, and MLX with it, is loaded when the
name is first used.
"""

import sys
from types import ModuleType

from mlx_gpt.lazy import attach
from mlx_gpt.version import __version__ as __version__

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        name: "api"
        for name in (
            *("Run", "convert", "evaluate", "evaluate_code", "evaluate_text", "export", "generate", "load", "push"),
            *("rl", "train"),
        )
    },
)


class _Package(ModuleType):
    """The class of this package. It keeps `mlx_gpt.train` and `mlx_gpt.rl` functions, although there are subpackages.

    When Python imports a subpackage, it assigns the subpackage to an attribute of its parent. Importing mlx_gpt/train/
    would thus replace the function. This class ignores that assignment. The subpackage's modules can still be imported:
    `from mlx_gpt.train import reports`.
    """

    def __setattr__(self, name: str, value) -> None:
        if not (name in ("train", "rl") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
