"""h11's connection and asyncio's transport, as the HTTP server uses them."""

import asyncio
import typing
from collections.abc import Callable

import h11


class Connection(h11.Connection):
    """h11's connection, which also refuses a request that gives the length of its body twice.

    RFC 9112, section 6.3, allows to refuse such a request. A proxy and the server could use different lengths, and a
    part of the body would then be read as a request of its own (request smuggling).

    Attributes:
        fault: The reason of the refusal; None before.
    """

    fault: str | None = None

    def next_event(self):
        event = super().next_event()
        if isinstance(event, h11.Request):
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                self.fault = "the request has both Content-Length and Transfer-Encoding; send one of them"
                raise h11.RemoteProtocolError(self.fault)
        return event


class Transport:
    """A transport whose close() is replaced by `close`. The original method is `close_now`.

    uvicorn closes connections in several places. All of them call close() of the transport. After write_eof(), nothing
    can be written, and the transport counts as closing.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]):
        self._transport, self.close, self.close_now = transport, close, transport.close
        self._is_ended = False

    def write_eof(self) -> None:
        self._is_ended = True
        self._transport.write_eof()

    def is_closing(self) -> bool:
        return self._is_ended or self._transport.is_closing()

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._transport, name)
