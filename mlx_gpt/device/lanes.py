"""Lanes: MLX streams on which parts of a batch are computed concurrently.

MLX runs each CPU stream in a separate thread, and most of its CPU operations use one core. A batch is therefore cut
into parts, each with some of its rows (sequences), and the parts run on several streams: by default one for each core.
A GPU has one lane.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

from mlx_gpt.device.mlx import BLAS, mx, on_gpu

# Maximum number of tokens in a part on a CPU: enough for efficient matrix products, few enough for caches and memory.
LANE_TOKENS = 2048

# If LANE_TOKENS would cut a batch into more parts than this, divide() allows larger parts. There can still be more than
# MAX_PARTS parts: if max_rows is small, or because divide() makes the parts smaller so that all lanes have equal work.
# Each part is traced separately, so more parts take longer to compile.
MAX_PARTS = 64

_local = threading.local()  # an MLX stream belongs to the thread that made it


def lanes(count: int | None = None) -> list[mx.Stream]:
    """Returns the lanes of the current thread. On a GPU this is a list of the default stream only.

    On a CPU this also sets the number of BLAS threads to the number of cores divided by the number of lanes.

    Args:
        count: the number of lanes on a CPU. 0 means one for each core. None means the number of the last call in this
            thread, or one for each core if there was none.
    """
    if on_gpu():
        return [mx.default_stream(mx.default_device())]
    if count is not None or not hasattr(_local, "lanes"):
        _local.lanes = count or num_cores()
    streams = _local.__dict__.setdefault("streams", [])
    streams += [mx.new_stream(mx.cpu) for _ in range(_local.lanes - len(streams))]
    BLAS.set_threads(max(num_cores() // _local.lanes, 1))
    return streams[: _local.lanes]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """A context for work that occupies a single lane: each matrix product may use all cores."""
    BLAS.set_threads(num_cores())
    try:
        yield
    finally:
        lanes()


def num_cores() -> int:
    """Returns the number of CPU cores that this process may use, at most the environment variable OMP_NUM_THREADS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # OpenMP has a number for each level of nesting
    return min(count, int(limit)) if limit.isascii() and limit.isdigit() and int(limit) > 0 else count


def divide(rows: int, max_rows: int, lanes: list[mx.Stream], block_size: int) -> list[tuple[int, int, mx.Stream]]:
    """Divides the rows of a batch into parts of equal size and assigns them to the lanes in turn.

    Parts on one lane run one after the other. Parts on different lanes run concurrently. All parts have the same size,
    except that the last may be smaller. Therefore few shapes are traced, and the lanes finish at about the same time.

    Example: 10 rows, at most 6 at once, on two lanes a and b. Each lane may compute 3 rows at once. 10 rows need two
    rounds of two parts, so the size of a part is ceil(10 / 4) = 3:

    >>> divide(10, 6, ["a", "b"], block_size=256)
    [(0, 3, 'a'), (3, 6, 'b'), (6, 9, 'a'), (9, 10, 'b')]

    On a CPU a part also has at most LANE_TOKENS tokens (8 rows of 256). The limit is raised to one row if a row has
    more tokens, and to ceil(rows / MAX_PARTS) rows if it would otherwise give more than MAX_PARTS parts:

    >>> divide(32, 32, ["a", "b"], block_size=256)
    [(0, 8, 'a'), (8, 16, 'b'), (16, 24, 'a'), (24, 32, 'b')]

    Args:
        rows: the number of rows.
        max_rows: the number of rows that all lanes together may compute at once, to limit memory. Each lane computes
            at most max_rows / lanes rows, rounded up.
        lanes: the lanes.
        block_size: the number of tokens in a row.

    Returns:
        The parts as tuples (first row, end row, lane). The end row is exclusive.
    """
    max_size = -(-max_rows // len(lanes))
    if not on_gpu():
        max_size = min(max_size, max(LANE_TOKENS // block_size, -(-rows // MAX_PARTS), 1))
    rounds = -(-rows // (max_size * len(lanes)))
    size = -(-rows // (rounds * len(lanes)))
    return [(first, min(first + size, rows), lanes[i % len(lanes)]) for i, first in enumerate(range(0, rows, size))]
