"""Groups of processes that train one model together. So far, only a group of one process is implemented."""

from typing import Any, Protocol


class Group(Protocol):
    """The processes that train one model.

    Attributes:
        rank: Number of this process, from 0 to size - 1. Only rank 0 saves checkpoints.
        size: Number of processes.
    """

    rank: int
    size: int

    def sum(self, tree: Any) -> Any:
        """Sums each array of a tree over all ranks (an all-reduce). It is called inside the compiled step."""
        ...

    def agree(self, flag: bool) -> bool:
        """Returns whether the flag is set on any rank. Every rank must call it at the same point of the loop."""
        ...


class Alone:
    """A group of one process."""

    rank, size = 0, 1

    def sum(self, tree: Any) -> Any:
        return tree

    def agree(self, flag: bool) -> bool:
        return flag
