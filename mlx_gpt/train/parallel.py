"""Groups of processes that train one model together. A process of a group is a rank.

`distributed/ranks.py` has the group of several processes.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mlx.utils import tree_map

from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import GroupChanged, GroupFailed, UserError

Arrays = dict[str, mx.array]


class Group(Protocol):
    """The processes that train one model.

    Every rank must call `sum` and `gather` at the same points of the program.

    Attributes:
        rank: Number of this process, from 0 to size - 1. Only rank 0 writes files and shows the run.
        size: Number of processes.
    """

    rank: int
    size: int

    def sum(self, tree: Any) -> Any:
        """Sums each array of a tree over all ranks (an all-reduce). The result is equal on all ranks, bit for bit.

        It may be called inside a compiled function. Outside, the result is not evaluated.
        """
        ...

    def gather(self, *numbers: int) -> list[list[int]]:
        """Returns for each rank the numbers that it gave. All ranks give equally many, from 0 to 2^32 - 1."""
        ...

    def failure(self, error: Exception) -> UserError | None:
        """Returns the error that explains an exception of MLX: which rank was lost. None if none was."""
        ...

    def leave(self, is_done: bool) -> None:
        """Leaves the group. If not `is_done`, the other ranks take this process for lost, and end the run."""
        ...

    def allow_changes(self, min_ranks: int, max_ranks: int) -> str | None:
        """Lets ranks be lost, as long as `min_ranks` remain, and processes join, up to `max_ranks`.

        Returns:
            The address at which processes join, on rank 0.

        Raises:
            UserError: The connections of this group do not allow changes.
        """
        ...

    def has_newcomers(self) -> bool:
        """Whether processes wait to join. Only rank 0 knows them."""
        ...

    def regroup(self, goes_on: Callable[[], bool]) -> GroupChanged | None:
        """Forms a group of the ranks that are not lost and the processes that wait to join.

        Every rank that is not lost must call it. It waits until they have.

        Args:
            goes_on: Called on rank 0 after the wait: whether the run goes on. A signal may have arrived meanwhile.

        Returns:
            What starts this process again in the new group; None if rank 0 has ended or too few ranks remain.
        """
        ...


class Alone:
    """A group of one process."""

    rank, size = 0, 1

    def sum(self, tree: Any) -> Any:
        return tree

    def gather(self, *numbers: int) -> list[list[int]]:
        return [list(numbers)]

    def failure(self, error: Exception) -> UserError | None:
        return None

    def leave(self, is_done: bool) -> None:
        """Does nothing."""

    def allow_changes(self, min_ranks: int, max_ranks: int) -> str | None:
        return None

    def has_newcomers(self) -> bool:
        return False

    def regroup(self, goes_on: Callable[[], bool]) -> GroupChanged | None:
        return None


class Local:
    """A rank whose sums are its own values: for steps in which the ranks do not communicate.

    Args:
        group: The group of the rank.
    """

    def __init__(self, group: Group):
        self.rank, self.size = group.rank, group.size
        self.gather, self.failure, self.leave = group.gather, group.failure, group.leave
        self.allow_changes, self.has_newcomers, self.regroup = group.allow_changes, group.has_newcomers, group.regroup

    def sum(self, tree: Any) -> Any:
        return tree


def agree(group: Group, *flags: bool) -> list[bool]:
    """Returns for each flag whether it is set on any rank."""
    return [any(column) for column in zip(*group.gather(*map(int, flags)), strict=True)]


def of_rank(group: Group, rank: int, tree: Any) -> Any:
    """Returns on all ranks the arrays that one rank holds. The others pass arrays of the same shapes and dtypes."""
    if group.size == 1:
        return tree
    is_source = group.rank == rank
    found = group.sum(tree if is_source else tree_map(mx.zeros_like, tree))
    mx.eval(found)
    return tree if is_source else found  # a sum turns -0 into 0


def divided(group: Group, function: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    """Returns function(arrays) on all ranks. Each rank computes the results of its share of the arrays.

    Args:
        group: The group.
        function: A function that treats each array of a dictionary by itself, and keeps its shape and dtype.
        arrays: Arrays by name, the same on all ranks.
    """
    if group.size == 1:
        return function(arrays)
    largest_first = sorted(arrays, key=lambda name: (-arrays[name].size, name))
    own = function({name: arrays[name] for name in largest_first[group.rank :: group.size]})
    # The results of the other ranks are 0 here, so the sum is exact.
    return group.sum({name: own[name] if name in own else mx.zeros_like(a) for name, a in arrays.items()})


def bytes_of_first(group: Group, content: bytes) -> bytes:
    """Returns on all ranks the bytes that rank 0 passes."""
    length = group.gather(len(content))[0][0]
    sent = mx.array(memoryview(content)) if group.rank == 0 else mx.zeros(length, mx.uint8)
    return bytes(memoryview(of_rank(group, 0, sent)))


def require_equal(group: Group, weights: dict[str, mx.array], step: int) -> None:
    """Raises GroupFailed if the ranks do not hold the same weights, bit for bit. `step` is for the message."""
    checksum = 0
    for name in sorted(weights):
        checksum = zlib.crc32(memoryview(weights[name]), checksum)
    checksums = group.gather(checksum)
    different = [rank for rank, found in enumerate(checksums) if found != checksums[0]]
    if different:
        raise GroupFailed(
            f"after step {step}, the weights of rank {different[0]} differ from those of rank 0; use machines with the "
            "same chip and the same version of MLX, and continue with --resume from an earlier checkpoint"
        )


@contextlib.contextmanager
def explained(group: Group) -> Iterator[None]:
    """A context that converts exceptions of MLX about a lost rank to GroupFailed."""
    try:
        yield
    except RuntimeError as error:
        if failure := group.failure(error):
            raise failure from error
        raise


def share(group: Group, rows: int) -> slice:
    """Returns the rows of a batch of `rows` rows that this rank computes. The ranks have one row more or less."""
    return slice(rows * group.rank // group.size, rows * (group.rank + 1) // group.size)
