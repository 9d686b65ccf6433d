"""Gives a process another place in a group whose ranks have changed.

MLX connects the ranks of a group once in a process. A process whose group changes therefore executes its command again,
with an environment variable that holds its rank and the hosts of the new group.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Self

VARIABLE = "MLXGPT_PLACE"
Hosts = list[list[str]]  # the addresses of each rank, as in the hostfiles of MLX


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place of a process in a group.

    Attributes:
        rank: Its number.
        hosts: The addresses of all ranks.
    """

    rank: int
    hosts: Hosts

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def given(cls) -> Self | None:
        """Returns the place that the environment gives this process, and removes it there; None if it gives none."""
        text = os.environ.pop(VARIABLE, None)
        return text and cls(**json.loads(text))

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A context in which MLX finds this place in the environment, and the hosts in a temporary file."""
        with tempfile.NamedTemporaryFile("w", prefix="mlxgpt-hosts-", suffix=".json") as file:
            json.dump(self.hosts, file)
            file.flush()
            os.environ |= {"MLX_RANK": str(self.rank), "MLX_HOSTFILE": file.name}
            yield


def places(hosts: Hosts, remaining: list[int]) -> dict[int, Place]:
    """Returns the new places of the remaining ranks, by their old numbers. They keep their order."""
    kept = [hosts[rank] for rank in remaining]
    return {old: Place(rank=new, hosts=kept) for new, old in enumerate(remaining)}
