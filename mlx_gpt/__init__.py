"""Train a GPT from scratch on Apple Silicon, with MLX.

import mlx_gpt
run = mlx_gpt.load("runs/model-l-shakespeare/best.safetensors")
for piece in mlx_gpt.generate(run, "ROMEO:"):
    print(piece, end="")
"""

__version__ = "0.1.0"
__all__ = ["Run", "generate", "load"]


def __getattr__(name: str):
    # MLX is loaded when it is first needed, so that `mlxgpt --help` answers at once.
    if name in __all__:
        from mlx_gpt import api

        return getattr(api, name)
    raise AttributeError(f"module 'mlx_gpt' has no attribute {name!r}")
