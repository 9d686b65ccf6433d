"""Access rules: checks host, origin, API key and content type before an application receives a request.

Starlette's TrustedHostMiddleware is not used, for three reasons. It has no pattern for "every IP address", and a server
that listens on all addresses accepts every IP address as its host. It accepts a request with several Host headers and
uses the first one. Its error is not JSON.
"""

import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gpt.web.errors import ApiError, cut, refuse

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Security headers that are added to every response, unless the application sets them.
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """Access rules: the hosts and origins that a server accepts, and its API key.

    Args:
        host: The address that the server listens on. If it is a loopback address, requests must name a loopback host or
            one of `hosts`. If it is any other address, requests may also name any IP address or one of `own_names`.
        key: The API key; None if no key is required.
        hosts: Further host names, in lower case, without port.
        origins: Web origins, such as "https://mac.example", whose pages may send requests. Pages of the server itself
            always may.
        own_names: The machine's names, in lower case, without ".local".
    """

    host: str = "127.0.0.1"
    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    own_names: tuple[str, ...] = field(default_factory=lambda: (socket.gethostname().lower().removesuffix(".local"),))

    def require_host(self, headers: Headers) -> str:
        """Returns the Host header in lower case.

        The check prevents DNS rebinding: a page of another site can make its own host name resolve to this server, but
        the browser still sends that name as Host.

        Raises:
            ApiError: There is no Host header, there are several, or it names a host that is not accepted.
        """
        given = headers.getlist("host")
        host = given[0].lower() if len(given) == 1 else ""
        # Without the port: "mac.example:8080" -> "mac.example", "[::1]" -> "[::1]".
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not name or not self._is_ours(name):
            shown = cut(repr(given[0] if given else ""))
            raise ApiError(400, f"Host {shown} is not allowed; allow it with --allow-host", code="bad_host")
        return host

    def _is_ours(self, name: str) -> bool:
        if name in (*LOOPBACK, *self.hosts):
            return True
        if is_loopback(self.host):
            return False
        return name.removesuffix(".local") in self.own_names or _is_address(name.strip("[]"))

    def require_origin(self, headers: Headers, host: str) -> None:
        """Raises ApiError for a request from a page of another site. `host` is the result of require_host()."""
        for origin in headers.getlist("origin"):
            if origin not in self.origins and origin.lower() not in (f"http://{host}", f"https://{host}"):
                shown = cut(repr(origin))
                raise ApiError(403, f"Origin {shown} is not allowed; allow it with --allow-origin", code="bad_origin")

    def require_key(self, headers: Headers) -> None:
        """Raises ApiError unless the request has the key, as a bearer token or in the header x-api-key."""
        if self.key is None:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            what = "the API key is wrong" if given else "an API key is required"
            raise ApiError(401, f"{what}; send Authorization: Bearer KEY", code="invalid_api_key")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware: checks each request, adds security headers to its response, and logs one line about it.

    The line has the client's address, the method, the path, the status (with the error code, if any) or "gone", the
    time taken and a request id. It contains neither the body nor the headers of the request. If the server itself
    responds with an error while the request arrives, it sets scope["refused"] to that status and code.

    Args:
        app: The application. It receives the requests that passed all checks.
        access: The access rules.
        log: Called with each line.
        open_paths: Paths that can be read (GET, HEAD) without the API key.
        count: Called with the path and the status after every request. The status is "gone" if the client left before
            the response was complete.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        log: Callable[[str], None],
        open_paths: set[str],
        count: Callable[[str, int | str], None] = lambda path, status: None,
    ):
        self.app, self.access, self.log, self.open_paths, self.count = app, access, log, open_paths, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, request_id = time.perf_counter(), f"req-{secrets.token_hex(8)}"
        status, complete, disconnected = 0, False, False

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                headers["x-request-id"] = request_id
            else:
                complete = not message.get("more_body", False)
            await send(message)

        async def watched_receive() -> Message:
            nonlocal disconnected
            message = await receive()
            disconnected = disconnected or message["type"] == "http.disconnect" and not complete
            return message

        try:
            try:
                self._require(scope)
            except ApiError as error:
                await refuse(error, scope)(scope, watched_receive, watched_send)
            else:
                await self.app(scope, watched_receive, watched_send)
        finally:
            result, code = ("gone", None) if disconnected else (status, scope.get("code"))
            result, code = scope.get("refused", (result, code))
            self.count(scope["path"], result)
            client = (scope.get("client") or ("-",))[0]
            request = f"{client} {cut(scope['method'])} {cut(ascii(scope['path'])[1:-1], 200)}"
            took = time.perf_counter() - start
            self.log(f"{request} {f'{result} {code}' if code else result} {took:.3f}s {request_id}")

    def _require(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = self.access.require_host(headers)
        self.access.require_origin(headers, host)
        if scope["method"] == "OPTIONS":
            return  # a CORS preflight request, to which browsers never add the key
        if scope["path"] not in self.open_paths or scope["method"] not in ("GET", "HEAD"):
            self.access.require_key(headers)
        if scope["method"] == "POST":
            # A page of another site can send a form or plain text without a preflight request, but it cannot send JSON.
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                shown = cut(repr(kind))
                raise ApiError(
                    415, f"Content-Type {shown} is not supported; send application/json", code="bad_content_type"
                )
