"""Where processes wait for a place in a group: rank 0 listens, and a newcomer connects to it.

A process that wants to join waits until an exchange. The processes of a changed group, which have started again, meet
here before MLX connects them, because MLX waits forever for one that has been lost in between.

Both sides send one line of JSON: the newcomer its token and its address, rank 0 the newcomer's place or an error.
"""

import contextlib
import hmac
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from mlx_gpt.distributed.elastic import Place, places
from mlx_gpt.errors import BadFile, GroupChanged, GroupFailed, UserError
from mlx_gpt.parse import parse_json

MAX_LINE = 1 << 20  # bytes
GREETING_SECONDS, CONNECT_SECONDS, POLL_SECONDS = 2.0, 20.0, 0.1
START_SECONDS = 60.0  # within which the processes of a changed group must have started again


def free_address(host: str) -> str:
    """Returns an address at which rank 0 can listen: `host`, a free port and a token that is hard to guess."""
    with socket.create_server((host, 0)) as free:
        return f"{host}:{free.getsockname()[1]}:{secrets.token_hex(16)}"


class Rendezvous:
    """Listens for newcomers on rank 0, in a thread.

    Args:
        address: As `free_address` returns it.
        room: The number of newcomers that the group can take.

    Raises:
        GroupFailed: The address cannot be used.
    """

    def __init__(self, address: str, room: int):
        host, port, self._token = _parts(address)
        self._room, self._newcomers = room, dict[str, socket.socket]()
        self._closed = threading.Event()
        try:
            self._hub = socket.create_server((host, port))
        except OSError as error:
            raise GroupFailed(f"rank 0 cannot listen at {host}:{port}: {error}; leave out train.min_ranks") from None
        self._hub.settimeout(POLL_SECONDS)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def waiting(self) -> list[str]:
        """Returns the addresses of the newcomers that wait, in the order in which they came."""
        return [address for address, peer in list(self._newcomers.items()) if _is_open(peer)]

    def invite(self, places: Mapping[str, Place]) -> None:
        """Sends newcomers their places, by their addresses."""
        for address, place in places.items():
            _send(self._newcomers[address], place.to_json())

    def close(self) -> None:
        """Ends the connections to all newcomers, and listens no more."""
        self._closed.set()
        self._thread.join()
        for peer in [self._hub, *self._newcomers.values()]:
            peer.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                peer = self._hub.accept()[0]
                peer.settimeout(GREETING_SECONDS)
                if not self._greet(peer):
                    peer.close()

    def _greet(self, peer: socket.socket) -> bool:
        """Reads the line of a newcomer. Returns whether it waits from now on."""
        try:
            line = parse_json(peer.makefile("rb").readline(MAX_LINE).decode("utf-8", "replace"), "newcomer")
            token, address = line["token"], line["address"]
            is_known = isinstance(address, str) and hmac.compare_digest(token.encode(), self._token.encode())
        except (OSError, BadFile, KeyError, TypeError, AttributeError):
            return False
        if is_known and len(self.waiting()) >= self._room:
            _send(peer, json.dumps({"error": "each process computes a sequence of an update, and there are no more"}))
            return False
        if is_known:
            self._newcomers[address] = peer
        return is_known


def wait_for_place(address: str, note: Callable[[str], None]) -> GroupChanged:
    """Waits until the group at an address takes this process. Returns what starts it as a rank of the group.

    Args:
        address: The address and the token that rank 0 has shown.
        note: Called with one line before the wait.

    Raises:
        UserError: The address is not one that rank 0 has shown.
        GroupFailed: There is no such group, or it takes no further process.
    """
    host, port, _ = _parts(address)
    note(f"waiting for an exchange of the run at {host}:{port}")
    place = _invited(address, None, time.monotonic() + CONNECT_SECONDS)
    return place.change(f"joining as rank {place.rank} of {len(place.hosts)}")


def meet(place: Place) -> Place:
    """Waits until all processes of a changed group have started again.

    Returns:
        The place of this process among those that have.

    Raises:
        GroupFailed: Too few processes have, or rank 0 has not.
    """
    deadline = time.monotonic() + START_SECONDS
    if place.rank:
        return _invited(place.address, place.hosts[place.rank][0], deadline)
    expected = {row[0]: rank for rank, row in enumerate(place.hosts) if rank}
    with contextlib.closing(Rendezvous(place.address, sys.maxsize)) as rendezvous:
        while (here := expected.keys() & rendezvous.waiting()) < expected.keys() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        remaining = [0, *sorted(expected[address] for address in here)]
        if len(remaining) < place.min_ranks:
            raise GroupFailed(
                f"only {len(remaining)} of {len(place.hosts)} processes have started again, but train.min_ranks is "
                f"{place.min_ranks}; continue with --resume"
            )
        found = places(place.hosts, remaining, [], place.min_ranks, place.address)
        rendezvous.invite({new.hosts[new.rank][0]: new for new in found[1:]})
        return found[0]


def _invited(address: str, own: str | None, deadline: float) -> Place:
    """Waits for the place that rank 0 sends. Before a deadline, connects again if rank 0 does not listen yet.

    Args:
        address: Where rank 0 listens.
        own: The address of this process for MLX; None for a free one.
        deadline: As time.monotonic() counts.
    """
    host, port, token = _parts(address)
    while not (text := _answer(host, port, token, own)):
        if time.monotonic() >= deadline:
            raise GroupFailed(
                f"rank 0 does not answer at {host}:{port}: the run has ended, or the address or its token is wrong; "
                "copy the address that rank 0 has shown last"
            )
        time.sleep(POLL_SECONDS)
    answer = parse_json(text, f"rank 0 at {host}:{port}")
    if "error" in answer:
        raise GroupFailed(f"rank 0 at {host}:{port}: {answer['error']}")
    return Place(**answer)


def _answer(host: str, port: int, token: str, own: str | None) -> str:
    """Returns the line that rank 0 sends; "" if it does not listen, or closes the connection."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            own = own or free_address(peer.getsockname()[0]).rpartition(":")[0]
            _send(peer, json.dumps({"token": token, "address": own}))
            peer.settimeout(None)
            return peer.makefile("rb").readline(MAX_LINE).decode("utf-8", "replace")
    except OSError:
        return ""


def _parts(address: str) -> tuple[str, int, str]:
    host, _, rest = address.partition(":")
    port, _, token = rest.partition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16 and token):
        raise UserError(f"--join {address!r} is not HOST:PORT:TOKEN; copy the address that rank 0 has shown")
    return host, int(port), token


def _is_open(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _send(peer: socket.socket, text: str) -> None:
    peer.settimeout(GREETING_SECONDS)
    with contextlib.suppress(OSError):  # the other side is gone; reading tells
        peer.sendall(text.encode() + b"\n")
