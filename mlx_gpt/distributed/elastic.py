"""Forms another group when ranks are lost or further processes join.

MLX connects the ranks of a group once in a process. A process whose group changes therefore executes its command again,
with an environment variable that holds its place in the new group.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

from mlx_gpt.errors import GroupChanged
from mlx_gpt.parse import parse_json

VARIABLE = "MLXGPT_PLACE"
Hosts = list[list[str]]  # the addresses of each rank, as in the hostfiles of MLX


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place of a process in a group that has changed.

    Attributes:
        rank: Its number.
        hosts: The addresses of all ranks.
        min_ranks: The smallest number of ranks with which the run goes on.
        address: Where rank 0 listens for processes that join, and for the ranks that start again.
    """

    rank: int
    hosts: Hosts
    min_ranks: int
    address: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def is_given() -> bool:
        """Whether the environment gives this process a place."""
        return VARIABLE in os.environ

    @classmethod
    def given(cls) -> Self | None:
        """Returns the place that the environment gives this process, and removes it there; None if it gives none."""
        text = os.environ.pop(VARIABLE, None)
        return cls(**parse_json(text, VARIABLE)) if text else None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A context in which MLX finds this place in the environment, and the hosts in a temporary file."""
        with tempfile.NamedTemporaryFile("w", prefix="mlxgpt-hosts-", suffix=".json") as file:
            json.dump(self.hosts, file)
            file.flush()
            os.environ |= {"MLX_RANK": str(self.rank), "MLX_HOSTFILE": file.name}
            yield

    def change(self, message: str) -> GroupChanged:
        """Returns what starts this process again in this place."""
        return GroupChanged(message, {VARIABLE: self.to_json()})


def places(hosts: Hosts, remaining: list[int], joining: list[str], min_ranks: int, address: str) -> list[Place]:
    """Returns the places of the remaining ranks, in their order, and then those of the processes that join.

    Args:
        hosts: The addresses of the ranks so far. If a process joins, each rank keeps its first one.
        remaining: The numbers of the ranks that remain, from 0 on.
        joining: The address of each process that joins.
        min_ranks, address: As in `Place`.
    """
    kept = [hosts[rank][:1] if joining else hosts[rank] for rank in remaining] + [[a] for a in joining]
    return [Place(rank=rank, hosts=kept, min_ranks=min_ranks, address=address) for rank in range(len(kept))]
