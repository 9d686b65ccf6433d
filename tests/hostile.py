"""Changes files at random, and requires that a reader survives each change."""

import contextlib
import random
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mutations import Mutate, mutated

from mlx_gpt.errors import BadFile, UserError

SECONDS = 10  # of computing, for one read
MEMORY = 96 << 20  # bytes for one read, besides twice the size of the file. A text in memory has at most 64 MiB


@dataclass
class Target:
    """A good file, and how it is read.

    Attributes:
        path: The file.
        read: Reads the file and uses its content.
        mutate: Changes the bytes of the file.
    """

    path: Path
    read: Callable[[], object]
    mutate: Mutate = mutated


def resident() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def require_own(error: UserError, folder: Path) -> None:
    """Asserts that an error is one line, and that one about a file names it, or the corpus."""
    assert isinstance(error, BadFile) <= (str(folder) in str(error) or "corpus " in str(error)), str(error)
    assert "\n" not in str(error) and len(str(error)) < 2000, str(error)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A context that fails after SECONDS of computing in this process."""

    def fail(*_):
        raise AssertionError(f"computes for more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attack(target: Target, count: int, draw: random.Random) -> None:
    """Reads a file `count` times, each time with other changes.

    Each attempt succeeds or raises a UserError of one line. It computes for at most SECONDS, and needs no more memory
    than twice the file and MEMORY.
    """
    good = target.path.read_bytes()
    target.read()
    before = resident()
    tracemalloc.start()
    try:
        for number in range(count):
            data = target.mutate(good, draw)
            target.path.write_bytes(data)
            tracemalloc.reset_peak()
            try:
                with bounded():
                    target.read()
            except UserError as error:
                require_own(error, target.path.parent)
            except BaseException as error:
                error.add_note(f"attempt {number}: {data[:3000]!r}")
                raise
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + MEMORY, (number, data[:3000])
    finally:
        tracemalloc.stop()
    assert resident() - before < 256 << 20


def require_one_line(good: bytes, read: Callable[[Path], object], path: Path, count: int) -> None:
    """Attacks the reader of a file with the content `good`."""
    path.write_bytes(good)
    attack(Target(path, lambda: read(path)), count, random.Random(0))
