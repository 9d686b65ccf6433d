"""Notices that a process of a group has ended, hangs or cannot be reached.

Each rank has a connection to rank 0. A thread at both of its ends sends a message every BEAT_SECONDS. A process that
gets none for SILENT_SECONDS takes the other one for lost. Rank 0 tells the other ranks which one is lost.

After a loss, the remaining ranks may form another group. Each tells rank 0 when its work has ended. Rank 0 waits for
all that are not lost, and then sends each its place in the new group.
"""

import contextlib
import hmac
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping

from mlx_gpt.errors import GroupFailed

BEAT_SECONDS, SILENT_SECONDS, CONNECT_SECONDS, GREETING_SECONDS = 1.0, 20.0, 20.0, 2.0
TOKEN_BYTES = 4  # a number that rank 0 has drawn, and that only the ranks know
MESSAGE = struct.Struct(">cI")  # a kind, and a number
BEAT, LEAVE, LOST, HELLO, READY, PLACE = b"b", b"e", b"l", b"h", b"r", b"p"  # PLACE: the number of bytes that follow
MAX_PLACE = 1 << 20  # bytes


class Heartbeat:
    """Sends and receives the messages of one rank, in a thread.

    Args:
        rank: The number of this process.
        peers: The connections to other ranks by their numbers: on rank 0 to all others, elsewhere to rank 0.
        on_loss: Called once, in the thread, if a rank is lost.
        silent_seconds: The time without a message after which a rank is lost.
    """

    def __init__(
        self,
        rank: int,
        peers: Mapping[int, socket.socket],
        on_loss: Callable[[], None],
        silent_seconds: float = SILENT_SECONDS,
    ):
        self._rank, self._peers, self._on_loss, self._silent = rank, dict(peers), on_loss, silent_seconds
        self._reason: str | None = None
        self._lost, self._closed = threading.Event(), threading.Event()
        self._changed = threading.Condition()  # of the three values that follow
        self._watched, self._ready, self._place = set(self._peers), set[int](), b""
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def accept(hub: socket.socket, size: int, token: int) -> dict[int, socket.socket]:
        """Accepts on rank 0 the connections of the `size` - 1 other ranks, which must send the token.

        Raises:
            GroupFailed: They do not connect in time.
        """
        peers: dict[int, socket.socket] = {}
        deadline = time.monotonic() + CONNECT_SECONDS
        with hub:
            while len(peers) < size - 1:
                hub.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    peer = hub.accept()[0]
                except OSError:
                    missing = min(set(range(1, size)) - peers.keys())
                    raise GroupFailed(f"rank {missing} did not connect to rank 0; check its host") from None
                if (rank := _rank_of(peer, token)) is None:
                    peer.close()
                else:
                    peers[rank] = peer
        return peers

    @staticmethod
    def connect(address: tuple[str, int], rank: int, token: int) -> dict[int, socket.socket]:
        """Connects a rank to rank 0. Raises GroupFailed if that fails."""
        try:
            peer = socket.create_connection(address, timeout=CONNECT_SECONDS)
            peer.sendall(MESSAGE.pack(HELLO, rank) + token.to_bytes(TOKEN_BYTES))
        except OSError as error:
            raise GroupFailed(f"rank {rank} cannot connect to rank 0 at {address[0]}:{address[1]}: {error}") from None
        return {0: peer}

    def reason(self, seconds: float) -> str | None:
        """Waits at most this long for a loss to be noticed. Returns which rank was lost, and how; None if none was."""
        self._lost.wait(seconds)
        return self._reason

    def others(self) -> list[int]:
        """Waits on rank 0 until each of the other ranks is ready or lost. Returns those that are ready."""
        with self._changed:
            self._changed.wait_for(lambda: self._watched <= self._ready)
            return sorted(self._watched)

    def send_places(self, places: Mapping[int, bytes]) -> None:
        """Sends ranks their places in a new group, on rank 0, and stops watching them."""
        self._stop()
        for number, place in places.items():
            self._send(self._peers[number], PLACE, len(place), place)

    def place(self) -> bytes:
        """Tells rank 0 that this rank is ready. Returns the place that it sends; b"" if rank 0 is lost or ends."""
        self._send(self._peers[0], READY, self._rank)
        with self._changed:
            self._changed.wait_for(lambda: not self._watched)
            return self._place

    def close(self, is_done: bool) -> None:
        """Stops watching the others. If not `is_done`, they take this process for lost."""
        self._stop()
        for peer in self._peers.values():
            if is_done:
                self._send(peer, LEAVE, self._rank)
            peer.close()

    def _stop(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        heard = dict.fromkeys(self._peers, time.monotonic())
        beaten = 0.0
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                peer.settimeout(BEAT_SECONDS)
                selector.register(peer, selectors.EVENT_READ, number)
            while self._watched and not self._closed.is_set():
                if time.monotonic() - beaten >= min(BEAT_SECONDS, self._silent / 4):
                    beaten = time.monotonic()
                    for number in self._watched:
                        self._send(self._peers[number], BEAT, self._rank)
                for key, _ in selector.select(min(BEAT_SECONDS, self._silent) / 4):
                    heard[key.data] = time.monotonic()
                    if not self._read(key.data):
                        self._forget(key.data, selector)
                for number in list(self._watched):
                    if time.monotonic() - heard[number] > self._silent:
                        self._lose(number, f"rank {number} has not answered for {self._silent:g} s")
                        self._forget(number, selector)

    def _forget(self, number: int, selector: selectors.BaseSelector) -> None:
        """Stops watching a rank that is lost or has left."""
        selector.unregister(self._peers[number])
        with self._changed:
            self._watched.discard(number)
            self._changed.notify_all()

    def _read(self, number: int) -> bool:
        """Reads a message of a rank. Returns whether it is still watched."""
        try:
            kind, about = MESSAGE.unpack(_exactly(self._peers[number], MESSAGE.size))
            if kind == PLACE:
                self._place = _exactly(self._peers[number], min(about, MAX_PLACE))
        except (OSError, EOFError):
            self._lose(number, f"rank {number} has ended before the end of the run")
            return False
        if kind == LOST:
            self._lose(about, f"rank {about} has ended or does not answer")
        if kind == READY:
            with self._changed:
                self._ready.add(number)
                self._changed.notify_all()
        return kind in (BEAT, LOST, READY)

    def _lose(self, lost: int, reason: str) -> None:
        if not self._reason:
            self._reason = reason
            for number, peer in self._peers.items():
                if number != lost:
                    self._send(peer, LOST, lost)
            self._lost.set()
            self._on_loss()

    def _send(self, peer: socket.socket, kind: bytes, number: int, content: bytes = b"") -> None:
        # The thread reads the end of a connection, and reports it.
        with self._sending, contextlib.suppress(OSError):
            peer.sendall(MESSAGE.pack(kind, number) + content)


def _rank_of(peer: socket.socket, token: int) -> int | None:
    """Reads the greeting of a connection. Returns the rank of the other side; None if it is not one of the group."""
    peer.settimeout(GREETING_SECONDS)
    try:
        kind, rank = MESSAGE.unpack(_exactly(peer, MESSAGE.size))
        is_known = hmac.compare_digest(_exactly(peer, TOKEN_BYTES), token.to_bytes(TOKEN_BYTES))
    except (OSError, EOFError):
        return None
    return rank if kind == HELLO and is_known else None


def _exactly(peer: socket.socket, size: int) -> bytes:
    """Reads `size` bytes. Raises EOFError if the connection ends before."""
    found = b""
    while len(found) < size:
        if not (piece := peer.recv(size - len(found))):
            raise EOFError
        found += piece
    return found
