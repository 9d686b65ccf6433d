"""What every HTTP surface shares, with an application that generates no text."""

import contextlib
import socket
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mlx_gpt.errors import UserError
from mlx_gpt.web import server
from mlx_gpt.web.errors import HANDLERS, ApiError, bad
from mlx_gpt.web.guard import Access, Guard


def toy(log, access=None, counted=None):
    async def greet(request):
        if request.query_params.get("loud") not in (None, "yes"):
            raise bad("loud", "loud: yes or nothing")
        return PlainTextResponse("hello")

    async def decline(request):
        raise ApiError(413, "too large" + "!" * 100_000)  # more than one packet

    async def wait(_request):
        raise ApiError(503, "not yet")

    async def fail(_request):
        raise RuntimeError("a secret of the server's")

    routes = [Route("/", greet), Route("/fail", fail), Route("/wait", wait), Route("/", decline, methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    return Guard(app, access or Access(), log, open_paths={"/"}, count=counted or (lambda path, status: None))


class Toy:
    """A second surface, served in a thread."""

    def __init__(self, access=None, work=None, **options):
        self.lines, self.error, self.counts, ready = [], None, [], threading.Event()
        listening = server.bind("127.0.0.1", 0)
        self.port = listening.getsockname()[1]

        def on_ready(stop):
            self.stop = stop
            ready.set()

        def run():
            try:
                app = toy(self.lines.append, access, lambda *counted: self.counts.append(counted))
                server.serve(app, listening, work, log=self.lines.append, on_ready=on_ready, **options)
            except Exception as error:
                self.error = error
                ready.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert ready.wait(20)

    def get(self, path="/", **options):
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", **options)

    def end(self):
        self.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(**options):
    toy = Toy(**options)
    try:
        yield toy
    finally:
        toy.end()


class Work:
    """Takes `seconds` to end."""

    unit, failure = "drawings", None

    def __init__(self, seconds=0.0):
        self.seconds, self.closed, self.ends_at = seconds, [], None

    async def start(self, stop):
        self.stop = stop

    def close(self, seconds):
        self.closed.append(seconds)
        self.ends_at = time.monotonic() + self.seconds

    @property
    def in_flight(self):
        return 3

    @property
    def alive(self):
        return self.ends_at is None or time.monotonic() < self.ends_at


def test_another_surface_has_the_same_rules_and_errors():
    logged = {}
    with serving(access=Access(key="sesame")) as toy:
        good = toy.get()
        assert good.text == "hello" and good.headers["x-content-type-options"] == "nosniff"
        key = {"x-api-key": "sesame"}
        for path, headers, status, code in (
            ("/", {"Host": "evil.example"}, 400, "bad_host"),
            ("/", {"Origin": "https://evil.example"}, 403, "bad_origin"),
            ("/?loud=no", {}, 400, "invalid_value"),
            ("/nothing", {}, 401, "invalid_api_key"),
            ("/nothing", key, 404, "bad_route"),
            ("/fail", key, 500, "RuntimeError"),
        ):
            refused = toy.get(path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
            assert "secret" not in refused.text
            logged[refused.headers["x-request-id"]] = f"{status} {code}"
    for request_id, result in logged.items():
        [line] = [line for line in toy.lines if line.endswith(request_id)]
        assert result in line
    assert toy.counts[0] == ("/", 200) and len(toy.counts) == 7


def test_its_requests_must_arrive_in_time():
    with serving(deadlines=server.Deadlines(receive=0.3)) as toy:
        with socket.create_connection(("127.0.0.1", toy.port), timeout=20) as sock:
            sock.sendall(b"GET / HT")
            assert sock.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_is_still_sending_gets_the_whole_error():
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
    with serving() as toy:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", toy.port), timeout=20) as sock:
                sender = threading.Thread(target=sock.sendall, args=(head + b"x" * (2 << 20),))
                sender.start()
                time.sleep(0.02)
                data = b""
                while part := sock.recv(65536):
                    data += part
                sender.join(20)
            assert data.startswith(b"HTTP/1.1 413 ") and data.endswith(b"}}") and data.count(b"!") == 100_000


def test_work_ends_before_the_server_does(monkeypatch):
    monkeypatch.setattr(server, "GRACE", 1.0)
    work = Work(seconds=0.3)
    with serving(work=work) as toy:
        assert toy.get().text == "hello"
        start = time.monotonic()
    assert work.closed == [1.0] and time.monotonic() - start >= 0.3 and toy.error is None
    assert toy.lines[-1].startswith("stopping: 3 drawings have 1 s")


def test_work_that_fails_stops_the_server_and_its_failure_is_raised():
    work = Work()
    toy = Toy(work=work)
    work.failure = RuntimeError("no more paper")
    work.stop()
    toy.thread.join(20)
    assert not toy.thread.is_alive() and toy.error is work.failure


def test_an_address_that_cannot_be_bound_is_named():
    with serving() as toy, pytest.raises(UserError, match=f"127.0.0.1:{toy.port}: .*; choose another --host or --port"):
        server.bind("127.0.0.1", toy.port)


def test_a_connection_sends_every_packet_at_once(monkeypatch):
    """TCP_NODELAY is set on accepted connections, so no packet waits for the acknowledgment of the one before it."""
    made, options = server.HttpProtocol.connection_made, []

    def look(protocol, transport):
        accepted = transport.get_extra_info("socket")
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(protocol, transport)

    monkeypatch.setattr(server.HttpProtocol, "connection_made", look)
    with serving() as toy:
        assert toy.get().text == "hello"
    assert options and all(options)


def test_every_503_says_when_to_come_back(monkeypatch):
    with serving() as toy:
        assert toy.get("/wait").headers["retry-after"] == "5"
        monkeypatch.setattr(server, "MAX_CONNECTIONS", 0)
        refused = toy.get()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert refused.json()["error"]["code"] == "too_many_connections"


@pytest.mark.parametrize("headers", [{"Host": "e" * 9000}, {"Origin": "e" * 9000}])
def test_an_error_repeats_little_of_the_request(headers):
    with serving() as toy:
        assert len(toy.get("/" + "x" * 9000, headers=headers).text) < 400
        assert len(toy.get("/" + "x" * 9000).text) < 400
    assert all(len(line) < 400 for line in toy.lines)
