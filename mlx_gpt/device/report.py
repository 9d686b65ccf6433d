"""Describes the machine: its hardware and software, the causes of slow training, and its measured speed."""

import os
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import distributions, version

from mlx_gpt.device import blas, jit
from mlx_gpt.device.lanes import num_cores
from mlx_gpt.device.memory import limit_memory, memory_limits
from mlx_gpt.device.mlx import BLAS, DTYPES, KERNELS, can_compile, changed_variables, kind, mx, on_gpu


def prepare(dtype: str = "float32") -> None:
    """Prepares the device for a run, and issues a Python warning for each cause of slow training here.

    Sets the limits of memory, and disables mx.compile if it cannot work.

    Args:
        dtype: the compute type of the run, a key of DTYPES.
    """
    limit_memory()
    if not can_compile():
        mx.disable_compile()
    for weakness in weaknesses():
        warnings.warn(weakness, stacklevel=2)
    if dtype != "float32" and not on_gpu():
        warnings.warn(
            f"on a CPU, MLX's matrix products are about 25x slower in {dtype} than in float32; use float32",
            stacklevel=2,
        )


def weaknesses() -> list[str]:
    """Returns one message for each cause of slow training on this machine. Each message names a remedy."""
    found = []
    if not on_gpu() and not BLAS.fast:
        found.append(f"matrix products run on {BLAS.name} BLAS, about 30x slower than a tuned one; {blas.REMEDY}")
    if not can_compile():
        found.append("no C++ compiler: MLX runs without compiled kernels on this CPU, which is slower; install g++")
    elif sys.platform == "linux" and not on_gpu() and not KERNELS.vectorized:
        found.append(f"MLX's fused kernels are not vectorized, which makes them several times slower: {KERNELS.reason}")
    if not on_gpu() and (cuda := _cuda_package()):
        found.append(
            f"{cuda} is installed but MLX runs on the CPU: either there is no NVIDIA GPU, or mlx-cpu was installed "
            f"later and replaced a file of it; in that case: pip install --force-reinstall --no-deps {cuda}"
        )
    return found


def _cuda_package() -> str | None:
    """Returns the name of the installed CUDA backend of MLX, such as mlx-cuda-12, or None."""
    return next((d.name for d in distributions() if d.name.startswith("mlx-cuda")), None)


def chip() -> str:
    """Returns the processor's name as the operating system reports it."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or "Apple"
    names = (line.partition(":")[2].strip() for line in jit.cpuinfo() if line.startswith("model name"))
    return next(names, platform.machine())


def device_report() -> dict:
    """Returns the facts about this machine that `mlxgpt doctor` and `mlxgpt bench` report, by name."""
    info = mx.device_info()
    gib = 1 << 30
    sizes = {k: info[k] for k in ("memory_size", "max_recommended_working_set_size") if k in info} | memory_limits()
    return {
        "device": "gpu" if on_gpu() else "cpu",
        "name": info.get("device_name", info.get("architecture", "unknown")),
        "backend": kind(),
        "chip": chip(),
        "cores": num_cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "numpy": version("numpy"),
        "blas": BLAS.name,
        "blas_fast": BLAS.fast,
        "blas_path": BLAS.path,
        "vectorised_kernels": KERNELS.vectorized,
        "compile": can_compile(),
        "ternary": "2-bit products" if on_gpu() else "unpacked to float32",  # networks that generate text
        "tf32": on_gpu() and os.environ["MLX_ENABLE_TF32"] != "0",
        "environment_changed": ", ".join(changed_variables()),
        "memory_limit_gib": round(mx.get_memory_limit() / gib, 2),
        **{f"{name}_gib": round(size / gib, 2) for name, size in sizes.items()},
    }


def matmul_rate(size: int = 1024, seconds: float = 0.5, dtype: str = "float32") -> float:
    """Measures the speed of MLX's matrix product on its default device.

    Args:
        size: the number of rows and columns of both matrices on a CPU. On a GPU four times this number is used.
        seconds: how long the product is repeated.
        dtype: the data type of the matrices, a key of DTYPES.

    Returns:
        The rate of the fastest product, in GFLOP/s (10^9 floating-point operations per second).
    """
    size = 4 * size if on_gpu() else size
    a = mx.random.normal((size, size), key=mx.random.key(0)).astype(DTYPES[dtype])
    mx.eval(a, a @ a)
    return _best_rate(lambda: mx.eval(a @ a), size, seconds)


def numpy_matmul_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """Measures NumPy's float32 matrix product on the CPU, for comparison. Returns its rate in GFLOP/s."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    a @ a
    return _best_rate(lambda: a @ a, size, seconds)


def _best_rate(product, size: int, seconds: float) -> float:
    """Calls `product` repeatedly for some seconds. Returns the rate of the fastest call in GFLOP/s.

    A product of two (size, size) matrices has 2 size^3 operations: size^3 multiplications and as many additions.
    """
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
