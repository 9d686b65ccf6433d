"""The only module that imports mlx.core and mlx.nn.

Importing this module first prepares the process: it loads a tuned BLAS, installs vectorized kernels and sets MLX's
environment variables. All of this must happen before MLX is loaded. Every other module imports `mx` and `nn` from here.
"""

import os
import shutil
import sys

from mlx_gpt.config.schema import SpeedConfig
from mlx_gpt.device import blas, jit

# The environment before the changes below, for child processes that must not inherit the changes.
STOCK_ENVIRONMENT = dict(os.environ)
BLAS = blas.preload()
KERNELS = jit.vectorize()
# By default, MLX multiplies float32 matrices in TF32 on an M5 and on CUDA: with 10 bits of mantissa instead of 23.
# float32 must mean the same on every device, so TF32 is off unless the user sets this variable or `speed.tf32`.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402, F401

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return mx.default_device().type == mx.DeviceType.gpu


# MLX schedules the operations of a graph breadth first up to this width, and depth first beyond it. Breadth-first order
# interleaves the lanes, so that they compute concurrently. Depth-first order would schedule all work of one lane before
# that of the next. MLX's default width is 20. The value was measured on Linux CPUs, and only they have lanes. MLX reads
# the variable at the first evaluation, so it can be set here, where the device is known.
if sys.platform == "linux" and not on_gpu():
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")


def kind() -> str:
    """Returns the backend of MLX's default device: "metal", "cuda" or "cpu".

    This does not initialize the device. Environment variables that MLX reads when the device is first used can still be
    set afterwards.
    """
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def can_compile() -> bool:
    """Whether mx.compile works. On a CPU it needs g++ at run time. On a GPU it needs no C++ compiler."""
    return on_gpu() or shutil.which("g++") is not None


def cast(arrays: dict[str, mx.array], dtype: str) -> dict[str, mx.array]:
    """Returns the arrays, with those of floating-point numbers converted to the data type DTYPES[dtype]."""
    return {n: a.astype(DTYPES[dtype]) if mx.issubdtype(a.dtype, mx.floating) else a for n, a in arrays.items()}


def for_few_rows(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Returns the weights in the memory layout that is fastest for inputs of few rows, and evaluates them.

    On a CPU this is column-major order: each weight is the transpose of a contiguous array. The weights are evaluated
    here, because a compiled function that captures unevaluated arrays computes them again in every call.
    """
    if not on_gpu():
        weights = {name: mx.contiguous(w.T).T for name, w in weights.items()}
    mx.eval(weights)
    return weights


def peak_memory() -> int:
    """Returns the peak memory of MLX arrays so far, in bytes."""
    return mx.get_peak_memory()


def reset_peak_memory() -> None:
    """Begins the peak memory of MLX arrays again from their present memory."""
    mx.reset_peak_memory()


def memory_limit() -> int:
    """Returns the most memory that MLX arrays may use, in bytes."""
    return mx.get_memory_limit()


def changed_variables() -> list[str]:
    """Returns the sorted names of the environment variables whose values differ from those in STOCK_ENVIRONMENT."""
    return sorted(k for k in os.environ.keys() | STOCK_ENVIRONMENT if os.environ.get(k) != STOCK_ENVIRONMENT.get(k))


def set_variables(speed: SpeedConfig) -> None:
    """Sets the variables that speed_variables() returns. Must be called before the device is first used."""
    os.environ.update(speed_variables(speed))


def speed_variables(speed: SpeedConfig) -> dict[str, str]:
    """Returns MLX's environment variables for these settings, without those of settings at their defaults.

    MLX reads these variables once, when the device is first used.
    """
    variables = {
        "MLX_MAX_OPS_PER_BUFFER": speed.ops_per_buffer,
        "MLX_MAX_MB_PER_BUFFER": speed.mb_per_buffer,
        "MLX_SDPA_VJP_BLOCK": speed.attention_tile,
        "MLX_ENABLE_TF32": speed.tf32,
    }
    return {name: str(int(value)) for name, value in variables.items() if value}
