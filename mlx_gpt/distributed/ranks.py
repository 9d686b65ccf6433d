"""A group of processes that `mlx.launch` has started, over mx.distributed.

All collectives run on one stream, and each depends on the one before it in the same tree. Their order is therefore the
same on all ranks. Collectives on two streams at a time add values of different arrays, without an error.
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlx.utils import tree_flatten, tree_map

from mlx_gpt.device.mlx import mx
from mlx_gpt.distributed import environment
from mlx_gpt.distributed.elastic import VARIABLE, Hosts, Place, places
from mlx_gpt.distributed.heartbeat import Heartbeat
from mlx_gpt.distributed.rendezvous import Rendezvous, free_address, meet
from mlx_gpt.errors import GroupChanged, GroupFailed, RankLost, UserError
from mlx_gpt.train.parallel import Alone, Group, explained

BUCKET_BYTES = 32 << 20  # arrays of one dtype are joined to pieces of about this size, and each piece is summed at once
LOST = ("[ring]", "[jaccl]", "[nccl]", "connection to a peer")  # what messages of MLX about lost connections contain
PATIENCE_SECONDS = 5.0  # the wait for other ranks after which rank 0 says that it waits
REASON_SECONDS = 3.0  # a lost connection of MLX is noticed at once; the heartbeat may need this long to name the rank

JOIN_SECONDS = 120.0  # MLX tries to connect for about 30 s, and then waits for the connections of others

CUT = "the connection to another process of the run was lost"
NEXT_STEP = (
    "the run has ended; see the messages of the other processes, and if it has saved a checkpoint, continue with "
    "--resume, with any number of processes"
)


class Ranks:
    """A group of several processes. `join` makes it.

    Args:
        group: The group of mx.distributed.
        connections: The sockets of MLX's own connections to other ranks.
        hosts: The addresses of the ranks; None if the backend is not ring.
        place: The place that another group gave this process; None if it was started by the user.

    Attributes:
        rank, size: As in `Group`.
    """

    def __init__(
        self,
        group: mx.distributed.Group,
        connections: Sequence[socket.socket] = (),
        hosts: Hosts | None = None,
        place: Place | None = None,
    ):
        self._group, self._connections, self._hosts = group, connections, hosts
        self.rank, self.size = group.rank(), group.size()
        self._min_ranks, self._address = (place.min_ranks, place.address) if place else (0, "")
        self._heartbeat: Heartbeat | None = None
        self._rendezvous: Rendezvous | None = None

    def sum(self, tree: Any) -> Any:
        leaves = [array for _, array in tree_flatten(tree)]
        summed: dict[int, mx.array] = {}
        before: list[mx.array] = []
        for bucket in buckets(leaves):
            joined = mx.concatenate([leaves[i].reshape(-1) for i in bucket])
            joined = mx.distributed.all_sum(mx.depends([joined], before)[0] if before else joined, group=self._group)
            before, first = [joined], 0
            for i in bucket:
                summed[i] = joined[first : first + leaves[i].size].reshape(leaves[i].shape)
                first += leaves[i].size
        in_order = iter(range(len(leaves)))  # tree_map visits the arrays in the order of tree_flatten
        return tree_map(lambda _: summed[next(in_order)], tree)

    def gather(self, *numbers: int) -> list[list[int]]:
        rows = [list(numbers) if rank == self.rank else [0] * len(numbers) for rank in range(self.size)]
        return mx.distributed.all_sum(mx.array(rows, dtype=mx.uint32), group=self._group).tolist()

    def failure(self, error: Exception) -> UserError | None:
        if not any(part in str(error) for part in LOST):
            return None
        reason = self._heartbeat and self._heartbeat.reason(REASON_SECONDS)
        return RankLost(f"{reason or CUT}; {NEXT_STEP}")

    def allow_changes(self, min_ranks: int, max_ranks: int) -> str | None:
        if self._hosts is None:
            raise UserError(
                "train.min_ranks needs the backend ring, whose processes have a hostfile; start them with --backend "
                "ring, or leave it out"
            )
        self._min_ranks = min_ranks
        if self.rank:
            return None
        self._address = self._address or free_address(self._hosts[0][0].rpartition(":")[0])
        self._rendezvous = Rendezvous(self._address, max_ranks - self.size)
        return self._address

    def has_newcomers(self) -> bool:
        return bool(self._rendezvous and self._rendezvous.waiting())

    def regroup(self, goes_on: Callable[[], bool]) -> GroupChanged | None:
        if not self._min_ranks:
            return None
        self._disconnect()  # another rank may wait for this one
        if self.rank:
            text = self._heartbeat.place()
            return GroupChanged("the ranks have changed", {VARIABLE: text.decode()}) if text else None
        remaining = [0, *self._heartbeat.others()]
        joining = self._rendezvous.waiting() if self._rendezvous else []
        if len(remaining) < self._min_ranks or not goes_on():
            return None
        found = places(self._hosts, remaining, joining, self._min_ranks, self._address)
        self._heartbeat.send_places({old: found[new].to_json().encode() for new, old in enumerate(remaining) if new})
        if joining:
            self._rendezvous.invite(dict(zip(joining, found[len(remaining) :], strict=True)))
        causes = [self._heartbeat.reason(0) or CUT] * (not joining or len(remaining) < self.size)
        causes += [f"processes that join: {len(joining)}"] * bool(joining)
        count = "this process alone" if len(found) == 1 else f"{len(found)} ranks"
        return found[0].change(f"{'; '.join(causes)}; the run continues with {count}")

    def start_heartbeat(self) -> None:
        """Begins to watch the other ranks. If one is lost, the connections to the others are closed.

        Raises:
            GroupFailed: A rank cannot be reached.
        """
        host = environment.address_of_first()
        hub = socket.create_server((host, 0)) if self.rank == 0 else None
        token = secrets.randbits(32)
        port, token = self.gather(hub.getsockname()[1] if hub else 0, token)[0]
        peers = Heartbeat.accept(hub, self.size, token) if hub else Heartbeat.connect((host, port), self.rank, token)
        self._heartbeat = Heartbeat(self.rank, peers, self._disconnect)

    def leave(self, is_done: bool) -> None:
        if self._rendezvous:
            self._rendezvous.close()
            self._rendezvous = None
        if self._heartbeat:
            self._heartbeat.close(is_done)
            self._heartbeat = None

    def _disconnect(self) -> None:
        """Closes MLX's connections, so that a collective that waits for another rank raises an exception."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side has closed it


def join(note: Callable[[str], None] = lambda line: None) -> Group:
    """Joins the group of processes that `mlx.launch` has started with this one; Alone if it has started none.

    Args:
        note: Called with one line on rank 0 if other ranks do not connect soon. May be called in another thread.

    Raises:
        UserError: The environment describes no group.
        BadFile: The hostfile is not a list of addresses.
        GroupFailed: The other processes cannot be reached.
    """
    if place := Place.given():
        place = meet(place)
    with place.taken() if place else contextlib.nullcontext():
        return _joined(place, note) if environment.is_rank() else Alone()


def _joined(place: Place | None, note: Callable[[str], None]) -> Group:
    """Joins the group that the environment describes, as `join` does. A group of one host needs no connection."""
    hosts, before, start = environment.hosts(), _sockets(), time.monotonic()
    waits = threading.Timer(PATIENCE_SECONDS, note, [f"waiting for other ranks, for at most {JOIN_SECONDS:g} s"])
    waits.daemon = True
    if os.environ[environment.RANK] == "0":
        waits.start()
    try:
        with _interrupted_after(JOIN_SECONDS):
            group = _single() if hosts and len(hosts) == 1 else mx.distributed.init()
    except RuntimeError as error:
        reason = re.sub(r"error: (\d+)", lambda found: os.strerror(int(found[1])), str(error))
        if time.monotonic() - start >= JOIN_SECONDS:
            reason = f"a rank has not connected within {JOIN_SECONDS:g} s; start all ranks within 30 s"
        raise GroupFailed(f"the processes of the run cannot reach each other: {reason}; check the hosts") from None
    finally:
        waits.cancel()
    if group.size() == 1 and not hosts:
        return Alone()
    connections = [socket.socket(fileno=os.dup(number)) for number in sorted(_sockets() - before)]
    for number in _sockets() - before:
        os.set_inheritable(number, False)  # they end with this program, also if it is executed again
    ranks = Ranks(group, connections, hosts, place)
    with explained(ranks):
        ranks.start_heartbeat()
    return ranks


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """A context whose waiting system calls fail after this time, in the main thread. Elsewhere it does nothing.

    MLX waits without end for the connection of a process that has ended before. An alarm ends the wait with EINTR.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second: the next call may wait too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _single() -> mx.distributed.Group:
    """Returns a group of this process. MLX waits forever for the other ranks of a hostfile with one host."""
    rank = os.environ.pop("MLX_RANK")
    try:
        return mx.distributed.init(backend="ring")
    finally:
        os.environ["MLX_RANK"] = rank


def buckets(arrays: Sequence[mx.array], size: int = BUCKET_BYTES) -> list[list[int]]:
    """Divides arrays into groups of one dtype and at most `size` bytes, or of one larger array.

    Returns:
        For each group, the indices of its arrays, in their order.
    """
    found: list[list[int]] = []
    for dtype in dict.fromkeys(a.dtype for a in arrays):
        filled = size
        for i, a in enumerate(arrays):
            if a.dtype == dtype:
                if filled + a.nbytes > size:
                    found.append([])
                    filled = 0
                found[-1].append(i)
                filled += a.nbytes
    return found


def _sockets() -> set[int]:
    """Returns the file descriptors of this process's sockets."""
    found = set()
    for name in os.listdir("/dev/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
        except OSError:
            pass  # the descriptor of the listing itself
    return found
