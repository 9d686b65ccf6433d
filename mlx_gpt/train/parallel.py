"""Groups: the processes that train one model together."""

from typing import Any, Protocol


class Group(Protocol):
    """The processes of a run, numbered from 0. Rank 0 saves and reports."""

    rank: int
    size: int

    def sum(self, tree: Any) -> Any:
        """The sums over all ranks of a tree of arrays. Called inside the compiled step."""
        ...

    def agree(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Every rank calls it at the same moments."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def sum(self, tree: Any) -> Any:
        return tree

    def agree(self, flag: bool) -> bool:
        return flag
