"""The only module that imports MLX. It prepares the process first: a fast BLAS, vectorised kernels, MLX's variables.

Every other module imports `mx` and `nn` from here, so that these are in place before MLX is loaded.
"""

import os
import shutil

from mlx_gpt.config.schema import SpeedConfig
from mlx_gpt.device import blas, jit

STOCK_ENVIRONMENT = dict(os.environ)  # as it was; child processes that are to find it so are started with this
BLAS = blas.preload()
VECTORISED = jit.vectorise()
# MLX orders a graph breadth first up to this width: wide enough that lanes take turns, not one after the other.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402, F401

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def kind() -> str:
    """metal, cuda or cpu. Asks nothing of the device, so that settings it reads when first used can still be made."""
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def can_compile() -> bool:
    """MLX compiles for the CPU by calling g++ at run time; GPUs need nothing."""
    return on_gpu() or shutil.which("g++") is not None


def cast(arrays: dict[str, mx.array], dtype: str) -> dict[str, mx.array]:
    """The arrays in a compute type, by its name."""
    return {name: a.astype(DTYPES[dtype]) for name, a in arrays.items()}


def for_few_rows(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The same weights, evaluated, laid out as a CPU multiplies few rows fastest: by columns.

    A graph traced over weights that are lazy still would compute them anew each time it runs.
    """
    if not on_gpu():
        weights = {name: mx.contiguous(w.T).T for name, w in weights.items()}
    mx.eval(weights)
    return weights


def peak_memory() -> int:
    """Bytes of the largest footprint of MLX arrays so far."""
    return mx.get_peak_memory()


def changed_variables() -> list[str]:
    """Names of the environment variables that this process has changed for MLX."""
    return sorted(k for k in os.environ.keys() | STOCK_ENVIRONMENT if os.environ.get(k) != STOCK_ENVIRONMENT.get(k))


def limit_buffers(speed: SpeedConfig) -> None:
    """Sets MLX's limits of a GPU's command buffers. MLX reads them once, when the device is first used."""
    os.environ.update(buffer_variables(speed))


def buffer_variables(speed: SpeedConfig) -> dict[str, str]:
    """MLX's environment for a GPU's command buffers; read once, when the device is first used."""
    wanted = {"MLX_MAX_OPS_PER_BUFFER": speed.ops_per_buffer, "MLX_MAX_MB_PER_BUFFER": speed.mb_per_buffer}
    return {name: str(value) for name, value in wanted.items() if value}
