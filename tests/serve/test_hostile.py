"""Clients that leave, are slow or hostile, and those without the key."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import re
import socket
import threading
import time

import httpx
import openai
import pytest
from serving import complete, connect, everything, raw, serving

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.slots import Slots
from mlx_gpt.serve import fields
from mlx_gpt.web import connection, server
from mlx_gpt.web.guard import Access

GOOD = b'{"prompt": "a", "max_tokens": 1}'


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_for_a_client_that_went_ends(served, stream):
    data = raw(json.dumps({"prompt": "a", "max_tokens": 4096, "stream": stream, "temperature": 0, "n": 4}).encode())
    with connect(served, data) as sock:
        while not served.metric("texts_active"):
            time.sleep(0.01)
        if stream:
            assert sock.recv(10)
    served.until_idle(seconds=3)
    metrics = httpx.get(served.url + "/metrics").text
    assert 'mlxgpt_requests_total{path="/v1/completions",status="gone"}' in metrics and 'status="0"' not in metrics


def test_a_client_that_went_while_its_text_waited_leaves_the_queue(run, monkeypatch):
    """Its response has begun, and the text that has the only slot does not end before."""
    gate, step = threading.Event(), Slots.step
    body = json.dumps({"prompt": "a", "max_tokens": 9, "stream": True}).encode()
    with serving(run, num_slots=1) as served, connect(served) as first:
        monkeypatch.setattr(Slots, "step", lambda *a: gate.wait(20) and step(*a))
        first.sendall(raw(body))
        while not served.metric("texts_active"):
            time.sleep(0.01)
        with connect(served, raw(body)) as second:
            head = b""
            while b"\r\n\r\n" not in head:  # with unread bytes, the socket would be reset when it is closed
                head += second.recv(65536)
            assert served.metric("texts_waiting") == 1
        end = time.monotonic() + 5
        while served.metric("texts_waiting"):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert served.metric("texts_active") == 1
        gate.set()
        while b"[DONE]" not in first.recv(65536):
            pass


def test_the_server_responds_while_a_body_is_decoded(served, monkeypatch):
    begun, gate, decode = threading.Event(), threading.Event(), fields.decode
    monkeypatch.setattr(fields, "decode", lambda *a: begun.set() or gate.wait(20) and decode(*a))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, json={"prompt": "a", "max_tokens": 1})
        assert begun.wait(20) and httpx.get(served.url + "/health", timeout=5).status_code == 200
        gate.set()
        assert asked.result().status_code == 200


def test_the_work_for_the_second_request_of_a_client_that_went_ends(served):
    before = served.metric("generated_tokens_total")
    bodies = {"prompt": "a", "max_tokens": 200, "stream": True}, {"prompt": "a", "max_tokens": 4096, "n": 4}
    with connect(served, b"".join(raw(json.dumps({"temperature": 0} | body).encode()) for body in bodies)) as sock:
        sock.shutdown(socket.SHUT_WR)
        first = b""
        while not first.endswith((b"\r\n0\r\n\r\n", b"100 Continue\r\n\r\n")) or b"[DONE]" not in first:
            first += sock.recv(65536)
    served.until_idle(seconds=3)
    assert served.metric("generated_tokens_total") - before < 4 * 4096


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_sent_everything_may_close_its_half(served, stream, monkeypatch):
    monkeypatch.setattr(server, "PROBE_EVERY", 0.01)
    body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": stream, "temperature": 0}).encode()
    both = raw(head="GET /health") + raw(body)  # the second request is read after the first response
    for data in (raw(body), both):
        with connect(served, data) as sock:
            sock.shutdown(socket.SHUT_WR)
            answer = everything(sock)
        assert answer.count(b"HTTP/1.1 200 ") == 1 + (data is both) and b'"finish_reason":"length"' in answer


def test_a_client_that_closes_its_half_too_early_is_gone(served):
    with connect(served, raw(GOOD)[:-1]) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert b"200 OK" not in everything(sock)
    served.until_idle(seconds=3)


@pytest.mark.parametrize("head", ["PUT /v1/completions", "POST /v1/completions"])
def test_the_second_request_of_a_client_that_closes_its_half_too_early_is_gone(served, head, monkeypatch, caplog):
    """Nothing is sent after the end of the first response, which is complete."""
    monkeypatch.setattr(server, "PROBE_EVERY", 0.01)
    body = json.dumps({"prompt": "a", "max_tokens": 200, "temperature": 0}).encode()
    with connect(served, raw(body) + raw(GOOD, head)[:-1]) as sock:
        sock.shutdown(socket.SHUT_WR)
        answer = everything(sock)
    assert b'"finish_reason":"length"' in answer and b" 405 " not in answer
    served.until_idle(seconds=3)
    assert not caplog.records


def test_a_client_that_expects_100_and_sends_no_chunks_is_refused_once(served, caplog):
    """Its body has arrived before the application asks for it."""
    headers = ["Transfer-Encoding: chunked", "Expect: 100-continue"]
    with connect(served, raw(b"no chunks\r\n", headers=headers)) as sock:
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    served.until_idle()  # the request has come to its end
    assert not caplog.records


def test_nothing_is_left_after_500_clients_that_went(served):
    draw = random.Random(3)

    def come_and_go(_):
        body = {"prompt": "a", "max_tokens": 4096, "n": draw.choice([1, 2]), "stream": draw.random() < 0.5}
        data = raw(json.dumps(body).encode())
        with connect(served, data[: draw.randrange(1, len(data) + 400)]) as sock:
            time.sleep(draw.random() * 0.02)
            if draw.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    before = mx.get_active_memory()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(500)))
    served.until_idle()
    assert served.post(json={"prompt": "a"}).status_code == 200
    assert mx.get_active_memory() <= before + 100_000


@pytest.mark.parametrize(
    "data",
    [b"", b"POST /v1/comp", raw(b"{}")[:-10], raw(b"{}")[:-1], raw(b"1", headers=["Transfer-Encoding: chunked"])],
)
def test_a_request_must_arrive_in_time(run, data):
    with serving(run, deadlines=server.Deadlines(receive=0.4)) as served, connect(served, data) as sock:
        start = time.monotonic()
        answer = everything(sock)
        assert time.monotonic() - start < 5
        assert not data or b"408" in answer.split(b"\r\n")[0] and b'"error"' in answer


def test_a_connection_that_was_reset_before_its_error_is_sent_is_closed(run, monkeypatch, caplog):
    """The system refuses to end its half of the connection."""

    def refuse(transport):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(connection.Transport, "write_eof", refuse)
    monkeypatch.setattr(server, "LINGER", 0.1)
    deadlines = server.Deadlines(receive=0.2)
    with serving(run, deadlines=deadlines) as served, connect(served, raw(GOOD)[:-1]) as sock:
        assert everything(sock).startswith(b"HTTP/1.1 408 ")
    assert not caplog.records


@pytest.mark.parametrize("cut", [1, 20])
def test_a_pipelined_request_must_arrive_in_time_too(run, cut):
    """A part of it arrives together with the request before it, and the rest never."""
    with serving(run, deadlines=server.Deadlines(receive=0.4)) as served:
        with connect(served, raw(GOOD) + raw(GOOD)[:-cut]) as sock:
            sock.settimeout(8)
            answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("data", [b"POST /v1/comp", raw(b"{}")[:-1]])
def test_a_request_that_arrives_too_slowly_has_one_line_in_the_log(run, data):
    with serving(run, deadlines=server.Deadlines(receive=0.3)) as served:
        with connect(served, data) as sock:
            assert everything(sock).startswith(b"HTTP/1.1 408 ")
        end = time.monotonic() + 5
        while not served.lines:
            assert time.monotonic() < end
            time.sleep(0.01)
    [line] = served.lines
    assert " 408 " in line


def test_a_request_with_two_lengths_is_the_last_of_its_connection(served):
    """Its body is read neither by its length nor by its chunks: the rest of it is not a request."""
    headers = ["Content-Length: 4", "Transfer-Encoding: chunked"]
    with connect(served, raw(b"0\r\n\r\n" + raw(GOOD), headers=headers)) as sock:
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"both Content-Length and Transfer-Encoding" in answer


def test_a_sender_that_drips_is_cut_off_all_the_same(run):
    with serving(run, deadlines=server.Deadlines(receive=0.5)) as served, connect(served) as sock:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in raw(b"{}" + b" " * 1000):
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 5


def test_a_reader_that_does_not_read_is_let_go(run):
    with serving(run, num_slots=1, deadlines=server.Deadlines(send=0.5)) as served:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", served.port))
            body = {"prompt": "a", "max_tokens": 4096, "n": 16, "stream": True, "logprobs": 5, "temperature": 0}
            sock.sendall(raw(json.dumps(body).encode()))
            time.sleep(0.5)
            assert served.metric("texts_active")
            served.until_idle(seconds=60)
        assert served.metric("generated_tokens_total") < 16 * 4096


HOSTILE = {
    "no JSON": raw(b"hello"),
    "empty": raw(b""),
    "half": raw(GOOD[:-3]),
    "array": raw(b"[1]"),
    "null": raw(b"null"),
    "nesting": raw(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "unknown nesting": raw(b'{"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    "many keys": raw(b"{" + b",".join(b'"%d": 1' % i for i in range(50_000)) + b', "temperature": "x"}'),
    "huge number": raw(b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}"),
    "huge float": raw(b'{"prompt": "a", "temperature": 1e999}'),
    "NaN": raw(b'{"prompt": "a", "temperature": NaN}'),
    "infinity": raw(b'{"prompt": "a", "top_p": Infinity}'),
    "bool": raw(b'{"prompt": "a", "max_tokens": true}'),
    "text for number": raw(b'{"prompt": "a", "max_tokens": "5"}'),
    "surrogate": raw(b'{"prompt": "\\ud800"}'),
    "invalid UTF-8": raw(b'{"prompt": "\xff\xfe"}'),
    "overlong UTF-8": raw(b'{"prompt": "\xc0\x80"}'),
    "control": raw(b'{"prompt": "a\x00"}'),
    "byte order mark": raw(b"\xef\xbb\xbf" + GOOD),
    "huge id": raw(b'{"prompt": [99999999999999999999999]}'),
    "deep ids": raw(b'{"prompt": [[[1]]]}'),
    "null in prompts": raw(b'{"prompt": [null]}'),
    "too large": raw(b'{"prompt": "' + b"a" * (1 << 20) + b'"}'),
    "length lies": raw(GOOD, headers=["Content-Length: 99999999999"])[:-1] + b"x" * (2 << 20),
    "long name": raw(b'{"' + b"x" * 900_000 + b'": 1}'),
    "long model": raw(b'{"prompt": "a", "model": "' + b"x" * 900_000 + b'"}'),
    "long role": raw(b'{"messages": [{"role": "' + b"x" * 900_000 + b'"}]}', "POST /v1/chat/completions"),
    "negative length": raw(GOOD, headers=["Content-Length: -1"]),
    "two lengths": raw(GOOD, headers=["Content-Length: 5", "Content-Length: 6"]),
    "bad chunk": raw(b"zz\r\n", headers=["Transfer-Encoding: chunked"]),
    "no type": raw(GOOD).replace(b"Content-Type: application/json\r\n", b""),
    "form": raw(GOOD).replace(b"application/json", b"application/x-www-form-urlencoded"),
    "text": raw(GOOD).replace(b"application/json", b"text/plain"),
    "GET": raw(head="GET /v1/completions"),
    "PUT": raw(GOOD, head="PUT /v1/completions"),
    "DELETE": raw(head="DELETE /v1/models/tiny"),
    "odd method": raw(head="BREW /v1/completions"),
    "OPTIONS": raw(head="OPTIONS /v1/completions"),
    "no such route": raw(head="GET /v1/files"),
    "path up": raw(head="GET /../../etc/passwd"),
    "encoded path up": raw(head="GET /%2e%2e/%2e%2e/etc/passwd"),
    "page path up": raw(head="GET /page.css/../../../etc/passwd"),
    "model path up": raw(head="GET /v1/models/..%2f..%2fetc%2fpasswd"),
    "log forging": raw(head="GET /x%0d%0aGET%20/forged%20200"),
    "foreign host": raw(GOOD).replace(b"Host: localhost", b"Host: evil.example"),
    "host with our name in it": raw(GOOD).replace(b"Host: localhost", b"Host: localhost.evil.example"),
    "empty host": raw(GOOD).replace(b"Host: localhost", b"Host: "),
    "no host": raw(GOOD).replace(b"Host: localhost\r\n", b""),
    "two hosts": raw(GOOD, headers=["Host: evil.example"]),
    "foreign origin": raw(GOOD, headers=["Origin: https://evil.example"]),
    "null origin": raw(GOOD, headers=["Origin: null"]),
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "huge header": raw(GOOD, headers=["X-Long: " + "a" * 1_000_000]),
    "many headers": raw(GOOD, headers=[f"X-{i}: {i}" for i in range(20_000)]),
    "websocket": raw(head="GET /", headers=["Connection: Upgrade", "Upgrade: websocket"]).replace(b"GET /", b"GET /ws"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_get_the_error_shape(served, name):
    with connect(served) as sock:
        sender = threading.Thread(target=_send, args=(sock, HOSTILE[name]))
        sender.start()
        head, _, body = read_one(sock)
        sender.join(20)
    status = int(head.split(b" ")[1])
    assert 400 <= status < 500, head
    assert len(body) < 500
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert served.post(json={"prompt": "a", "max_tokens": 1}).status_code == 200


def _send(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)


def read_one(sock):
    """One answer's head, its end, and its body."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in data:
            part = sock.recv(65536)
            if not part:
                break
            data += part
        head, end, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
        while len(body) < length:
            body += sock.recv(65536)
    return head, end, body[:length]


def test_a_chunked_gigabyte_is_not_read(served):
    with connect(served, raw(headers=["Transfer-Encoding: chunked"])) as sock:
        sent, chunk = 0, b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 1 << 30:
                sock.sendall(chunk)
                sent += 0x10000
        assert sent < 64 << 20
    assert served.post(json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_no_line_of_the_log_has_a_prompt_or_a_forged_line(served):
    served.post(json={"prompt": "secret words", "max_tokens": 1})
    served.post(json={"prompt": "secret words \u00e9", "max_tokens": 1})
    httpx.get(served.url + "/a%0d%0aforged%1b[31m")
    time.sleep(0.1)
    with connect(served, b"nonsense\r\n\r\n") as sock:
        everything(sock)
    assert any("Invalid HTTP" in line for line in served.lines)
    assert served.lines and not any("secret" in line for line in served.lines)
    assert all(line.isprintable() for line in served.lines)


def test_with_a_key_everything_but_the_page_and_health_needs_it(run):
    with serving(run, access=Access(key="sesame")) as served:
        for path in ("/v1/models", "/v1/models/tiny", "/v1/examples", "/metrics", "/nothing"):
            assert httpx.get(served.url + path).status_code == 401
            for wrong in ("Bearer", "Bearer wrong", "Basic sesame", "sesame", "Bearer sesame\u00e9"):
                headers = {"Authorization": wrong.encode("latin-1")}
                refused = httpx.get(served.url + path, headers=headers)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        for path in WRITES:
            assert served.post(path, {"prompt": "a"}).status_code == 401
        for path in ("/", "/base.css", "/page.css", "/main.js", "/tabs.js", "/health"):
            assert httpx.get(served.url + path).status_code == 200
        for headers in ({"Authorization": "Bearer sesame"}, {"x-api-key": "sesame"}):
            assert httpx.get(served.url + "/v1/models", headers=headers).status_code == 200
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                complete(client)
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sesame") as client:
            assert complete(client).choices


WRITES = ("/v1/completions", "/v1/chat/completions", "/")


@pytest.mark.parametrize(
    "access, name, taken",
    [
        (Access(), "localhost", True),
        (Access(), "LOCALHOST:8080", True),
        (Access(), "[::1]:8080", True),
        (Access(), "192.168.1.5", False),
        (Access(), "mine.example", False),
        (Access(hosts=("mine.example",)), "mine.example:443", True),
        (Access(host="0.0.0.0", own_names=("mac",)), "192.168.1.5:8080", True),
        (Access(host="0.0.0.0", own_names=("mac",)), "mac.local:8080", True),
        (Access(host="0.0.0.0", own_names=("mac",)), "evil.example", False),
    ],
)
def test_hosts(access, name, taken):
    from starlette.datastructures import Headers

    from mlx_gpt.web.errors import ApiError

    headers = Headers({"host": name})
    if taken:
        assert access.require_host(headers) == name.lower()
    else:
        with pytest.raises(ApiError, match="--allow-host"):
            access.require_host(headers)


def test_origins(run):
    with serving(run, access=Access(origins=("https://mine.example",))) as served:
        body = {"prompt": "a", "max_tokens": 1}
        own = served.post(json=body, headers={"Origin": served.url})
        allowed = served.post(json=body, headers={"Origin": "https://mine.example"})
        assert own.status_code == allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://mine.example"
        assert served.post(json=body, headers={"Origin": "https://other.example"}).status_code == 403
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        preflight = httpx.options(served.url + "/v1/completions", headers={"Origin": "https://mine.example"} | asked)
        assert preflight.status_code == 200
        refused = httpx.options(served.url + "/v1/completions", headers={"Origin": "https://other.example"} | asked)
        assert refused.status_code == 403


def test_every_answer_has_the_headers_of_a_careful_server(served):
    for path in ("/", "/main.js", "/health", "/v1/models", "/nothing"):
        headers = httpx.get(served.url + path).headers
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert headers["x-request-id"].startswith("req-") and "server" not in headers
