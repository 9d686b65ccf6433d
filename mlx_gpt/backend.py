"""The device: MLX with a fast BLAS and vectorised kernels under it, streams, limits, memory, compute types.

Every other module takes `mx` and `nn` from here, so that these are always in place before MLX is loaded.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions, version

from mlx_gpt import blas, jit
from mlx_gpt.config import SpeedConfig

STOCK_ENVIRONMENT = dict(os.environ)  # as it was, for processes that are to find MLX as it comes
BLAS = blas.preload()
VECTORISED = jit.vectorise()
# MLX orders a graph breadth first up to this width: wide enough that lanes take turns, not one after the other.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402, F401

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


# Tokens that one lane takes at once: enough for its matrix products, few enough for the caches and for memory.
LANE_TOKENS = 2048
MAX_PARTS = 64  # that a batch is cut into on a CPU, for each is a graph of its own to trace
_local = threading.local()  # an MLX stream belongs to the thread that made it


def lanes(wanted: int | None = None) -> list[mx.Stream]:
    """Streams on which parts of a batch run side by side; on a GPU its own.

    On a CPU as many as wanted, 0 for one a core; without a wish as many as were wanted last. A matrix product may use
    the cores that this leaves it.
    """
    if on_gpu():
        return [mx.default_stream(mx.default_device())]
    if wanted is not None or not hasattr(_local, "lanes"):
        _local.lanes = wanted or num_cores()
    streams = _local.__dict__.setdefault("streams", [])
    streams += [mx.new_stream(mx.cpu) for _ in range(_local.lanes - len(streams))]
    BLAS.set_threads(max(num_cores() // _local.lanes, 1))
    return streams[: _local.lanes]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """While it lasts, one product may use all cores: where there is no work for more than one lane."""
    BLAS.set_threads(num_cores())
    try:
        yield
    finally:
        lanes()


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide(rows: int, most: int, lanes: list[mx.Stream], block_size: int) -> list[tuple[int, int, mx.Stream]]:
    """Cuts rows into equal parts (first, end, lane), all lanes together taking at most `most` rows at once."""
    most = -(-most // len(lanes))
    if not on_gpu():
        most = min(most, max(LANE_TOKENS // block_size, -(-rows // MAX_PARTS), 1))
    rounds = -(-rows // (most * len(lanes)))
    size = -(-rows // (rounds * len(lanes)))
    return [(first, min(first + size, rows), lanes[i % len(lanes)]) for i, first in enumerate(range(0, rows, size))]


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


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def kind() -> str:
    """metal, cuda or cpu. Asks nothing of the device, so that settings it reads when first used can still be made."""
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def chip() -> str:
    """The processor's name, as the system gives it."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or "Apple"
    names = (line.partition(":")[2].strip() for line in jit.cpuinfo() if line.startswith("model name"))
    return next(names, platform.machine())


def buffer_variables(speed: SpeedConfig) -> dict[str, str]:
    """MLX's environment for a GPU's command buffers; read once, when the device is first used."""
    wanted = {"MLX_MAX_OPS_PER_BUFFER": speed.ops_per_buffer, "MLX_MAX_MB_PER_BUFFER": speed.mb_per_buffer}
    return {name: str(value) for name, value in wanted.items() if value}


def can_compile() -> bool:
    """MLX compiles for the CPU by calling g++ at run time; GPUs need nothing."""
    return on_gpu() or shutil.which("g++") is not None


def peak_memory() -> int:
    """Bytes of the largest footprint of MLX arrays so far."""
    return mx.get_peak_memory()


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
