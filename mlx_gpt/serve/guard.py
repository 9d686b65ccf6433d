"""Who may ask what: hosts, origins, the key, content types. Nothing behind it sees a request that it refuses."""

import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gpt.serve.schema import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
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
    """The allow-lists. Where `host`, the address listened on, is loopback alone, only its names are hosts."""

    host: str = "127.0.0.1"
    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    own_names: tuple[str, ...] = field(default_factory=lambda: (socket.gethostname().lower(),))

    @property
    def is_local(self) -> bool:
        return is_loopback(self.host)

    def require_host(self, headers: Headers) -> str:
        """The Host header. Raises ApiError for none, several, or a name that is not ours (DNS rebinding)."""
        given = headers.getlist("host")
        host = given[0].lower() if len(given) == 1 else ""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not name or not self._is_ours(name):
            raise ApiError(
                400, f"Host {given[0] if given else ''!r} is not served here; --allow-host adds one", code="bad_host"
            )
        return host

    def _is_ours(self, name: str) -> bool:
        if name in (*LOOPBACK, *self.hosts):
            return True
        if self.is_local:
            return False
        return name.removesuffix(".local") in self.own_names or _is_address(name.strip("[]"))

    def require_origin(self, headers: Headers, host: str) -> None:
        """Pages of other sites may not ask."""
        for origin in headers.getlist("origin"):
            if origin not in self.origins and origin.lower() not in (f"http://{host}", f"https://{host}"):
                raise ApiError(403, f"Origin {origin!r} is not allowed; --allow-origin adds one", code="bad_origin")

    def require_key(self, headers: Headers) -> None:
        if self.key is None:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            what = "the key is wrong" if given else "a key is needed"
            raise ApiError(401, f"{what}; send Authorization: Bearer KEY", code="invalid_api_key")


def is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI: refuses, adds what every answer has, and has one line logged of each. Prompts are in no line."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        log: Callable[[str], None],
        count: Callable[[str, int], None],
        open_paths: set[str],
    ):
        self.app, self.access, self.log, self.count = app, access, log, count
        self.open_paths = open_paths  # to be read without the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, request_id = time.perf_counter(), f"req-{secrets.token_hex(8)}"
        status, told, gone = 0, False, False

        async def watch(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                headers["x-request-id"] = request_id
            else:
                told = not message.get("more_body", False)
            await send(message)

        async def listen() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect" and not told
            return message

        try:
            try:
                self._require(scope)
            except ApiError as error:
                await refuse(error, scope)(scope, listen, watch)
            else:
                await self.app(scope, listen, watch)
        finally:
            self.count(scope["path"], status)
            result = "gone" if gone else f"{status} {scope['code']}" if "code" in scope else status
            client = (scope.get("client") or ("-",))[0]
            took = time.perf_counter() - start
            self.log(f"{client} {scope['method']} {ascii(scope['path'])[1:-1]} {result} {took:.3f}s {request_id}")

    def _require(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = self.access.require_host(headers)
        self.access.require_origin(headers, host)
        if scope["method"] == "OPTIONS":
            return
        if scope["path"] not in self.open_paths or scope["method"] not in ("GET", "HEAD"):
            self.access.require_key(headers)
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    415, f"Content-Type {kind!r} is not taken; send application/json", code="bad_content_type"
                )


def refuse(error: ApiError, scope: Scope) -> Response:
    """The answer that tells an ApiError; its code goes into the log."""
    scope["code"] = error.body["error"]["code"]
    headers = {401: {"www-authenticate": "Bearer"}, 413: {"connection": "close"}, 429: {"retry-after": "1"}}
    return Response(msgspec.json.encode(error.body), error.status, headers.get(error.status), "application/json")
