"""Groups of several ranks in one process, and processes that form a group.

`together` runs a function for each rank in a thread of its own. Only one thread runs at a time: the next one continues
when a rank waits for the others in a sum or a gather. MLX's compilation is off, so that sums happen when they are
called.
"""

import contextlib
import functools
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
from mlx.utils import tree_map

from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx


class Member:
    """A rank of a group whose ranks are threads.

    Attributes:
        sent: Bytes of the arrays that the rank has passed to `sum`.
    """

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, turn: threading.Lock, table: list):
        self.rank, self.size, self.sent = rank, size, 0
        self._meeting, self._turn, self._table = meeting, turn, table

    def _exchange(self, value):
        """Returns the values of all ranks, in their order."""
        self._table[self.rank] = value
        self._turn.release()
        try:
            self._meeting.wait(60)
            found = list(self._table)
            self._meeting.wait(60)
        finally:
            self._turn.acquire()
        return found

    def sum(self, tree):
        mx.eval(tree)
        tree_map(self._count, tree)
        found = functools.reduce(lambda a, b: tree_map(mx.add, a, b), self._exchange(tree))
        mx.eval(found)  # before the thread ends, whose stream computes it
        return found

    def _count(self, array):
        self.sent += array.nbytes

    def gather(self, *numbers):
        return self._exchange(list(numbers))

    def failure(self, error):
        return None

    def leave(self, is_done):
        pass

    def allow_changes(self, min_ranks, max_ranks):
        return None

    def has_newcomers(self):
        return False

    def regroup(self, goes_on):
        return None


def together(size: int, run: Callable) -> list:
    """Returns run(group) of each rank, for the `size` ranks of a group."""
    meeting, turn, table, results = threading.Barrier(size), threading.Lock(), [None] * size, [None] * size
    failures = []

    def of(rank):
        with turn:
            try:
                lanes(1)
                results[rank] = run(Member(rank, size, meeting, turn, table))
            except BaseException as error:
                failures.append(error)
                meeting.abort()

    threads = [threading.Thread(target=of, args=[rank]) for rank in range(size)]
    mx.disable_compile()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        mx.enable_compile()
    for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


@contextlib.contextmanager
def processes(size: int, *arguments, folder: Path, module: str = "mlx_gpt") -> Iterator[list[subprocess.Popen]]:
    """A context with `mlxgpt ARGUMENTS` as `size` processes that form a group over the loopback address.

    They are started as mlx.launch starts them, in the working folder `folder`. A `module` there may take the place of
    mlx_gpt. Processes that are still alive at the
    end are killed.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets]))
    for s in sockets:
        s.close()
    # Without compilation, a process starts faster.
    common = {"MLX_HOSTFILE": str(hosts), "MLX_DISABLE_COMPILE": "1", "OMP_NUM_THREADS": "1"}
    started = [
        commands.process(
            *arguments, cwd=folder, env=common | {"MLX_RANK": str(rank)}, stdin=subprocess.DEVNULL, module=module
        )
        for rank in range(size)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def ends(started: list[subprocess.Popen], seconds: float = 100) -> list[tuple[int, str, str]]:
    """Waits for processes. Returns the exit code, stdout and stderr of each."""
    found = []
    for process in started:
        out, err = process.communicate(timeout=seconds)
        found.append((process.returncode, out, err))
    return found
