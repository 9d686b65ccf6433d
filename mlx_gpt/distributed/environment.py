"""The environment variables with which `mlx.launch`, or a user in its place, starts a process as a rank of a group."""

import os
from pathlib import Path

from mlx_gpt.distributed.elastic import Hosts
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import parse_json, read_text

RANK, HOSTFILE = "MLX_RANK", "MLX_HOSTFILE"
# Variables that tell where rank 0 is. mlx.launch sets one of them, which depends on the backend.
ADDRESSES = (HOSTFILE, "MLX_JACCL_COORDINATOR", "NCCL_HOST_IP")
FORM = (
    'is no list of the addresses of each rank, such as [["192.168.1.2:5000"], ["192.168.1.3:5000"]]; write such a list '
    "(the file of mlx.launch --hostfile has another form)"
)


def is_rank() -> bool:
    """Returns whether this process is a rank of a group, whose other ranks may still have to start.

    Raises:
        UserError: Some of the variables are missing or wrong.
        BadFile: The hostfile is not a list of addresses.
    """
    rank, given = os.environ.get(RANK), [name for name in ADDRESSES if name in os.environ]
    if rank is None and HOSTFILE in given:
        raise UserError(f"{HOSTFILE} is set, but {RANK} is not; set it to the number of this rank, or unset {HOSTFILE}")
    if rank is None:
        return False
    if not rank.isdecimal():
        raise UserError(f"{RANK}={rank!r} is not the number of a rank; give a number from 0")
    if not given:
        raise UserError(
            f"{RANK} is set, but none of {', '.join(ADDRESSES)}; set {HOSTFILE} to the file with the addresses of all "
            f"ranks, or unset {RANK} to train in this process alone"
        )
    found = hosts()
    if found is not None and int(rank) >= max(len(found), 1):
        raise UserError(f"{RANK}={rank}: {os.environ[HOSTFILE]} has {len(found)} ranks, from 0 on; give a lower number")
    return found != []


def hosts() -> Hosts | None:
    """Returns the addresses of the ranks in the hostfile; None without one. `mlx.launch -n 1` makes an empty file.

    Raises:
        UserError: There is no such file.
        BadFile: It is not a list of addresses.
    """
    path = os.environ.get(HOSTFILE)
    if path is None:
        return None
    if not path:
        raise UserError(f"{HOSTFILE} is empty; set it to the file with the addresses of all ranks")
    text = read_text(Path(path))
    if not text.strip():
        return []
    found = parse_json(text, path)
    if not (isinstance(found, list) and found and all(map(_is_host, found))):
        raise BadFile(f"{path}: {FORM}")
    return found


def _is_host(addresses) -> bool:
    """Whether a value is a list of one or more texts HOST:PORT."""
    if not isinstance(addresses, list) or not addresses:
        return False
    parts = [address.rpartition(":") if isinstance(address, str) else ("", "", "") for address in addresses]
    return all(host and port.isdecimal() and int(port) < 1 << 16 for host, _, port in parts)


def address_of_first() -> str:
    """Returns the IP address of rank 0."""
    if found := hosts():
        return found[0][0].rpartition(":")[0]
    coordinator = os.environ.get("MLX_JACCL_COORDINATOR", "").rpartition(":")[0]
    return coordinator or os.environ["NCCL_HOST_IP"]
