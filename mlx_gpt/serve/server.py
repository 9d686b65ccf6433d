"""The process: a socket, uvicorn with deadlines, a graceful end."""

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from mlx_gpt.errors import EngineFailed, UserError
from mlx_gpt.generation.scheduler import Engine
from mlx_gpt.serve.app import Service, make_app
from mlx_gpt.serve.guard import Access
from mlx_gpt.serve.schema import ApiError, Limits

GRACE = 4.0  # seconds that texts have to come to their end when the server is to stop
LINGER = 1.0  # seconds for a refused client to read why
MAX_CONNECTIONS = 512
SEND_BUFFER = 1 << 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds from a request's first byte to its last, and until a reader takes what was sent."""

    receive: float = 15.0
    send: float = 10.0


class Protocol(H11Protocol):
    """HTTP/1.1 that neither slow senders nor slow readers can hold up, and whose every error has the one shape."""

    def __init__(self, *args, deadlines: Deadlines, log: Callable[[str], None], **options):
        super().__init__(*args, **options)
        self._deadlines, self._log = deadlines, log
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that pause_writing tells of every byte not taken
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "too many connections; try again")
        else:
            self._receiving = self.loop.call_later(self._deadlines.receive, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._receiving is None:
            self._receiving = self.loop.call_later(self._deadlines.receive, self._too_slow)
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._receiving = _cancel(self._receiving)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self._deadlines.send, self.transport.abort)

    def resume_writing(self) -> None:
        self._sending = _cancel(self._sending)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiving, self._sending = _cancel(self._receiving), _cancel(self._sending)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _too_slow(self) -> None:
        self._receiving = None
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
        elif self.conn.trailing_data[0] or self.conn.their_state is h11.SEND_BODY:
            self._refuse(408, f"the request took longer than {self._deadlines.receive:g} s to arrive")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self._log(f"{(self.client or '-')[0]} {status} {message}")
        body = json.dumps(ApiError(status, message).body).encode()
        head = f"HTTP/1.1 {status} {STATUS_PHRASES[status].decode()}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        # Closed at once, with bytes of the client's unread, the system would throw the answer away.
        self._refused = True
        self.loop.call_later(LINGER, self.transport.close)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Server(uvicorn.Server):
    """Ends texts before it ends connections; tells when it listens and when it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        log: Callable[[str], None],
        on_ready: Callable[[Callable[[], None]], None],
    ):
        super().__init__(config)
        self._engine, self._log, self._on_ready = engine, log, on_ready
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self.stop)

    def stop(self) -> None:
        """Ends serving, from any thread."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal lets texts come to their end, the next ends them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame) -> None:
        if self.signal is not None:
            self._engine.close(0)
        self.signal = number
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.close(GRACE)
        if count := self._engine.in_flight:
            self._log(f"stopping: {count} texts have {GRACE:g} s to come to their end; once more ends them at once")
        with contextlib.suppress(TimeoutError):  # a step that hangs is not waited for
            async with asyncio.timeout(GRACE + 0.5):
                while self._engine.alive:
                    await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What the system keeps for a reader who does not read is not noticed here, so it keeps little.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port}: {reason}; choose another --host or --port") from None
    return listening


def serve(
    listening: socket.socket,
    model,
    tokenizer,
    card: dict,
    *,
    num_slots: int = 16,
    max_waiting: int = 64,
    limits: Limits | None = None,
    access: Access | None = None,
    deadlines: Deadlines | None = None,
    log: Callable[[str], None],
    on_ready: Callable[[Callable[[], None]], None],
) -> None:
    """Serves until a signal, which is raised again at the end, or until the function `on_ready` is given is called.

    Raises EngineFailed when the engine gave up.
    """

    async def run() -> int | None:
        service = Service(
            partial(Engine, model, num_slots, max_waiting),
            tokenizer,
            card,
            limits or Limits(),
            shut=lambda: server.stop(),
        )
        server = Server(
            uvicorn.Config(
                make_app(service, access or Access(), log),
                http=partial(Protocol, deadlines=deadlines or Deadlines(), log=log),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            ),
            service.engine,
            log,
            on_ready,
        )
        await asyncio.to_thread(service.engine.start)
        await server.serve([listening])
        if service.failure:
            raise EngineFailed(f"the engine failed {service.engine.num_faults} times in a row: {service.failure}")
        return server.signal

    if number := asyncio.run(run()):
        signal.raise_signal(number)
