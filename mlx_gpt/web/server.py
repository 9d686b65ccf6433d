"""The HTTP server: a listening socket, HTTP/1.1 with deadlines, signals, and a graceful shutdown.

The server is uvicorn's. This module adds:

* deadlines for a request to arrive and for a response to be read (uvicorn limits only idle connections),
* responses for clients that close their half of the connection after a request,
* JSON bodies for errors that are detected before a request reaches the application,
* handling of SIGHUP, and
* a shutdown that ends the application's work before it closes the connections.
"""

import asyncio
import contextlib
import signal
import socket
import threading
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import h11
import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from mlx_gpt.errors import UserError
from mlx_gpt.web.connection import Connection, Transport
from mlx_gpt.web.errors import HEADERS, ApiError

GRACE = 4.0  # seconds that work in flight has to end after the first signal
LINGER = 1.0  # seconds until the connection is closed after an early response; meanwhile, input is discarded
MAX_DISCARDED = 4 << 20  # bytes discarded after an early response; a client that sends more is disconnected
MAX_CONNECTIONS = 512
PROBE_EVERY = 0.5  # seconds between checks whether a client that has closed its half of the connection still reads
SEND_BUFFER = 1 << 16  # bytes of the system's send buffer for each connection
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Time limits in seconds.

    Attributes:
        receive: For a request to arrive. Counted from the connection; for later requests on the same connection, from
            their first byte.
        send: For a client to read what was sent.
    """

    receive: float = 15.0
    send: float = 10.0


class Work(typing.Protocol):
    """Work that an application does in its own threads.

    The server starts the work before it accepts connections, and ends the work before it closes its connections.

    Attributes:
        unit: What the work consists of, in the plural, for the log. Example: "texts".
        failure: An error that serve() raises when the server has ended; None if there is none.
    """

    unit: str
    failure: Exception | None

    @property
    def in_flight(self) -> int:
        """The number of units that have begun or wait, and have not ended."""

    @property
    def alive(self) -> bool:
        """Whether the work is still running. False once it has ended after close()."""

    async def start(self, stop: Callable[[], None]) -> None:
        """Starts the work. Called in the server's event loop. `stop` ends the server, and any thread may call it."""

    def close(self, seconds: float) -> None:
        """Accepts no new work, and ends the work in flight within `seconds`. A second call can only shorten that."""


def bind(host: str, port: int) -> socket.socket:
    """Binds a TCP socket to an address.

    Args:
        host: An IPv4 or IPv6 address, or a host name.
        port: The port; 0 chooses a free one.

    Raises:
        UserError: The address cannot be bound. The message has the system's reason.
    """
    listening = None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sets TCP_NODELAY only on connections whose protocol is IPPROTO_TCP, which they take from this socket.
        # Without the option, the second packet of a response waits for the client's delayed acknowledgment.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Bytes in the system's send buffer count as sent, even if the client never reads them. With a large buffer the
        # send deadline would begin late, or never. The buffer is therefore small.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        if listening:
            listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    return listening


def serve(
    app: ASGIApp,
    listening: socket.socket,
    work: Work | None = None,
    *,
    deadlines: Deadlines | None = None,
    log: Callable[[str], None],
    on_ready: Callable[[Callable[[], None]], None],
) -> None:
    """Serves an application until a signal arrives or the server is stopped.

    After the shutdown, the signal is raised again, so that its original handler runs.

    Args:
        app: The application.
        listening: A socket from bind().
        work: The work of the application, if it has threads of its own.
        deadlines: Time limits for requests and clients.
        log: Called with each line of the log.
        on_ready: Called when the server accepts connections. Its argument is a function that stops the server. Any
            thread may call that function.

    Raises:
        Exception: `work.failure`, or an error of `work.start`.
    """

    async def run() -> int | None:
        server = Server(app, work, deadlines or Deadlines(), log, on_ready)
        if work:
            await work.start(server.stop)
        await server.serve([listening])
        if work and work.failure:
            raise work.failure
        return server.signal

    if number := asyncio.run(run()):
        signal.raise_signal(number)


class Server(uvicorn.Server):
    """uvicorn's server with three changes.

    It calls `on_ready` when it accepts connections, handles SIGHUP like SIGINT and SIGTERM, and ends the work before it
    closes connections.

    Attributes:
        signal: The number of the last signal; None before the first one.
    """

    def __init__(
        self,
        app: ASGIApp,
        work: Work | None,
        deadlines: Deadlines,
        log: Callable[[str], None],
        on_ready: Callable[[Callable[[], None]], None],
    ):
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(HttpProtocol, deadlines=deadlines, log=log),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._work, self._log, self._on_ready = work, log, on_ready
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self.stop)

    def stop(self) -> None:
        """Begins a graceful shutdown. Can be called from any thread."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles SIGNALS: the first signal begins a graceful shutdown, the second ends the work at once."""
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only in the main thread
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame) -> None:
        if self.signal is not None and self._work:
            self._work.close(0)
        self.signal = number
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._work:
            await self._end(self._work)
        await super().shutdown(sockets)

    async def _end(self, work: Work) -> None:
        work.close(GRACE)
        if count := work.in_flight:
            self._log(f"stopping: {count} {work.unit} have {GRACE:g} s to finish; a second signal ends them at once")
        with contextlib.suppress(TimeoutError):  # work that hangs delays the shutdown only by this timeout
            async with asyncio.timeout(GRACE + 0.5):
                while work.alive:
                    await asyncio.sleep(0.02)


class HttpProtocol(H11Protocol):
    """HTTP/1.1 with deadlines for slow senders and slow readers, a limit on connections, and errors as JSON."""

    def __init__(self, *args, deadlines: Deadlines, log: Callable[[str], None], **options):
        super().__init__(*args, **options)
        self.conn = Connection(h11.SERVER)
        self._deadlines, self._log = deadlines, log
        self._receiving: asyncio.TimerHandle | None = None  # the receive deadline of the request that is arriving
        self._sending: asyncio.TimerHandle | None = None  # the send deadline, while the client does not read
        self._probing: asyncio.TimerHandle | None = None  # the next probe of a client that has closed its half
        self._half_closed = False  # whether it has
        self._discarded: int | None = None  # bytes discarded since _linger(); None before

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.transport = Transport(transport, self._close)
        # pause_writing() is called as soon as the socket accepts no more bytes, and begins the send deadline.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "too many connections; try again later", "too_many_connections")
        else:
            self._receiving = self.loop.call_later(self._deadlines.receive, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED:
                self.transport.abort()
            return
        if self._receiving is None:
            self._receiving = self.loop.call_later(self._deadlines.receive, self._too_slow)
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):  # the request is complete
            self._receiving = _cancel(self._receiving)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self._deadlines.send, self.transport.abort)

    def resume_writing(self) -> None:
        self._sending = _cancel(self._sending)
        super().resume_writing()

    def eof_received(self) -> bool:
        """Called when the client sends no more. Returns whether the connection stays open, for the response."""
        under_way = self.cycle and not self.cycle.response_complete and not self.cycle.more_body
        self._half_closed = bool(under_way and self._discarded is None)
        if self._half_closed:
            self._probe()
        return self._half_closed

    def _probe(self) -> None:
        """Sends a client that has closed its half of the connection status 100, until its response begins.

        A client that waits for the response ignores status 100 (RFC 9110, section 15.2.1). If the client has closed the
        connection entirely, its system responds with a reset, the next probe fails, and the request is abandoned.
        """
        self._probing = _cancel(self._probing)
        if self.cycle.response_started or self.transport.is_closing():
            return
        if self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._probing = self.loop.call_later(PROBE_EVERY, self._probe)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # begins the next request, if at least its headers have been received
        if self._receiving is None and self._discarded is None and self.conn.their_state is h11.SEND_BODY:
            self._receiving = self.loop.call_later(self._deadlines.receive, self._too_slow)
        if not self._half_closed:
            return
        if self.cycle.response_complete or self.cycle.more_body:  # the rest of the next request cannot arrive
            self.cycle.disconnected = True
            self.transport.close_now()
        else:
            self._probe()

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiving, self._sending, self._probing = map(_cancel, (self._receiving, self._sending, self._probing))
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for a request that is not valid HTTP."""
        self._refuse(400, self.conn.fault or msg, "bad_http")

    def _too_slow(self) -> None:
        """Ends the connection at the receive deadline.

        A client of which a part of a request has arrived gets status 408. Otherwise, the connection is closed.
        """
        self._receiving = None
        if self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY:
            self._refuse(408, f"the request took longer than {self._deadlines.receive:g} s to arrive", "too_slow")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Sends an error without the application, and closes the connection. There is one line in the log.

        If the application is reading the request, its next receive() returns http.disconnect, and Guard logs the error.
        If the application's response has begun, the connection is aborted, because its status was already sent.
        """
        if self.cycle and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.scope["refused"] = status, code
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._log(f"{(self.client or '-')[0]} {status} {message}")
        body = msgspec.json.encode(ApiError(status, message, code=code).body)
        fixed = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
        fields = "".join(f"{name}: {value}\r\n" for name, value in {**fixed, **HEADERS.get(status, {})}.items())
        head = f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}\r\n{fields}\r\n"
        self.transport.write(head.encode() + body)
        self._linger()

    def _close(self) -> None:
        """Closes the connection after the response. If the request is still arriving, _linger() closes it later."""
        if self._discarded is None and self.conn.their_state is h11.SEND_BODY:
            self._linger()
        else:
            self.transport.close_now()

    def _linger(self) -> None:
        """Ends the response, and closes the connection after LINGER seconds. Until then, received bytes are discarded.

        If a socket were closed while received bytes are unread, the system would reset the connection. The client could
        then lose the response.
        """
        self._discarded, self._receiving = 0, _cancel(self._receiving)
        with contextlib.suppress(OSError):  # the client has reset the connection
            self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER, self.transport.close_now)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    """Cancels a timer, if there is one. Returns None, the new value of the caller's variable."""
    if timer:
        timer.cancel()
