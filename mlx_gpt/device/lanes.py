"""Lanes: the streams on which parts of a batch run side by side. A CPU has one a core, a GPU has one."""

import contextlib
import os
import threading
from collections.abc import Iterator

from mlx_gpt.device.mlx import BLAS, mx, on_gpu

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
