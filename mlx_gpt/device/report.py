"""What this machine has for training, and what it lacks."""

import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import distributions, version

from mlx_gpt.device import blas, jit
from mlx_gpt.device.lanes import num_cores
from mlx_gpt.device.mlx import BLAS, DTYPES, VECTORISED, can_compile, changed_variables, kind, mx, on_gpu


def prepare(dtype: str = "float32") -> None:
    """Warns of what makes MLX slow on this machine, and does without compiled kernels where none can be built."""
    if not can_compile():
        mx.disable_compile()
    for weakness in weaknesses():
        warnings.warn(weakness, stacklevel=2)
    if dtype != "float32" and not on_gpu():
        warnings.warn(f"MLX's matrix products in {dtype} are some 25x slower on a CPU than in float32", stacklevel=2)


def weaknesses() -> list[str]:
    """What this machine lacks for training, each with its cure."""
    found = []
    if not on_gpu() and not BLAS.fast:
        found.append(f"matrix products run on {BLAS.name} BLAS, some 30x too slow; {blas.CURE}")
    if not can_compile():
        found.append("no C++ compiler: MLX runs uncompiled on this CPU, and slower; install g++")
    if not on_gpu() and (cuda := _cuda_package()):
        found.append(
            f"{cuda} is installed but MLX runs on the CPU: there is no NVIDIA GPU, or mlx-cpu, which holds a file of "
            f"the same name, was installed over it; then: pip install --force-reinstall --no-deps {cuda}"
        )
    return found


def _cuda_package() -> str | None:
    return next((d.name for d in distributions() if d.name.startswith("mlx-cuda")), None)


def chip() -> str:
    """The processor's name, as the system gives it."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or "Apple"
    names = (line.partition(":")[2].strip() for line in jit.cpuinfo() if line.startswith("model name"))
    return next(names, platform.machine())


def device_report() -> dict:
    """What `doctor` and `bench` say of this machine."""
    info = mx.device_info()
    gib = 1 << 30
    limits = {k: round(info[k] / gib, 2) for k in ("memory_size", "max_recommended_working_set_size") if k in info}
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
        "vectorised_kernels": VECTORISED,
        "compile": can_compile(),
        "environment_changed": ", ".join(changed_variables()),
        "memory_limit_gib": round(mx.get_memory_limit() / gib, 2),
        **{f"{k}_gib": v for k, v in limits.items()},
    }


def matmul_rate(size: int = 1024, seconds: float = 0.5, dtype: str = "float32") -> float:
    """Measured matrix product of MLX on its default device, in GFLOP/s: the best of repeated runs."""
    size = 4 * size if on_gpu() else size
    a = mx.random.normal((size, size), key=mx.random.key(0)).astype(DTYPES[dtype])
    mx.eval(a, a @ a)
    return _best_rate(lambda: mx.eval(a @ a), size, seconds)


def numpy_matmul_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """The same product by NumPy, in GFLOP/s: what this CPU can do."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    a @ a
    return _best_rate(lambda: a @ a, size, seconds)


def _best_rate(product, size: int, seconds: float) -> float:
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
