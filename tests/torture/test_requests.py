"""Hostile requests: every answer has a status that is documented, and the server still answers a good request."""

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections import Counter

import numpy as np
import pytest
from mutations import mutated, mutated_value
from serving import ServedByCommand, connect, everything, raw, serving

from mlx_gpt.checkpoint import store
from mlx_gpt.serve.schema import Limits
from mlx_gpt.web import server

STATUSES = {200, 204, 307, 400, 401, 403, 404, 405, 408, 413, 415, 429, 503}
GOOD = {"prompt": "Hello", "max_tokens": 12, "seed": 7, "temperature": 0.8}
PATHS = ["/v1/completions", "/v1/chat/completions", "/", "/v1/models", "/health", "/metrics", "/nothing", "/main.js"]
BODIES = [
    GOOD | {"n": 2, "stop": ["x"], "stream": False, "logprobs": 2, "echo": True, "top_p": 0.9, "top_k": 3},
    GOOD | {"prompt": [1, 2, 3], "stream": True, "stream_options": {"include_usage": True}},
    GOOD | {"prompt": ["a", "b"], "logit_bias": None, "best_of": 1, "user": "x"},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "b"}], "max_tokens": 5},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stream": True, "max_tokens": 5},
]


@pytest.fixture(scope="module")
def served(ascii_run):
    deadlines = server.Deadlines(receive=1, send=0.5)
    with serving(ascii_run, limits=Limits(max_tokens=64), deadlines=deadlines, max_waiting=64) as served:
        yield served


def body(draw: random.Random) -> bytes:
    data = json.dumps(mutated_value(draw.choice(BODIES), draw) if draw.random() < 0.8 else GOOD).encode()
    if draw.random() < 0.05:
        data = b'{"prompt": "' + b"a" * draw.choice([100_001, 1 << 20, 3 << 20]) + b'"}'
    return mutated(data, draw) if draw.random() < 0.3 else data


def request(draw: random.Random) -> bytes:
    """One request, in most cases with something wrong in it."""
    content = body(draw)
    head = f"{draw.choice(['POST'] * 6 + ['GET', 'PUT', 'BREW'])} {draw.choice(PATHS[:2] * 4 + PATHS)}"
    headers = []
    if draw.random() < 0.3:
        headers = ["Transfer-Encoding: chunked"]
        content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in pieces(content, draw)) + b"0\r\n\r\n"
    if draw.random() < 0.1:
        headers.append(f"Content-Length: {draw.choice([-1, 0, 5, len(content), 1 << 40, 'x'])}")
    if draw.random() < 0.1:
        headers.append(draw.choice(["Expect: 100-continue", "Connection: close", "X: " + "y" * 5000, "Origin: null"]))
    data = raw(content, head, headers)
    return mutated(data, draw) if draw.random() < 0.4 else data


def pieces(data: bytes, draw: random.Random) -> list[bytes]:
    """The data, cut at up to five random places. No piece is empty."""
    places = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randint(0, 5)))
    parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return [part for part in parts if part]


def attack(served, draw: random.Random) -> None:
    """Sends one to three requests over a connection, whole or slowly.

    Raises:
        AssertionError: An answer has a status that is not documented, or the connection stays open.
    """
    data = b"".join(request(draw) for _ in range(draw.choice([1, 1, 1, 2, 3])))
    pause, manner = draw.choice([0, 0, 0, 0.01, 0.2]), draw.choice(["read", "read", "half", "leave", "cut"])
    if manner == "cut":
        data = data[: draw.randrange(len(data) + 1)]
    with connect(served) as sock:
        sender = threading.Thread(target=send, args=(sock, pieces(data, draw), pause, manner))
        sender.start()
        try:
            answer = everything(sock) if manner != "leave" else b""
        except TimeoutError:
            raise AssertionError(f"{manner}, pauses of {pause} s, still open after {data[:3000]!r}") from None
        finally:
            sender.join(30)
    # The status of a probe is 100.
    found = {int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.M)} - {100}
    assert found <= STATUSES, (found, data[:3000], answer[:500])


def send(sock, parts: list[bytes], pause: float, manner: str) -> None:
    with contextlib.suppress(OSError):
        for part in parts:
            sock.sendall(part)
            time.sleep(pause)
        if manner in ("half", "cut"):
            sock.shutdown(socket.SHUT_WR)


def text(served) -> str:
    for _ in range(100):
        answer = served.post(json=GOOD)
        if answer.status_code != 429:  # texts of clients that left may still wait
            break
        time.sleep(0.05)
    return answer.json()["choices"][0]["text"]


def in_threads(work, count: int, workers: int, draw: random.Random) -> list[threading.Thread]:
    """Starts threads that call work(number, random numbers of the thread) for each number below `count`."""

    def run(worker: int) -> None:
        own = random.Random(f"{seed} {worker}")
        for number in range(worker, count, workers):
            work(number, own)

    seed = draw.random()
    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    return threads


def test_hostile_requests_leave_the_server_as_it_was(served, attempts, draw, caplog):
    expected, faults = text(served), []

    def work(number: int, own: random.Random) -> None:
        try:
            attack(served, own)
        except Exception as error:
            faults.append((number, repr(error)))

    threads = in_threads(work, attempts(12, 1500), 16, draw)
    while any(thread.is_alive() for thread in threads):
        assert text(served) == expected
        time.sleep(0.3)
    assert not faults
    served.until_idle(30)
    assert text(served) == expected and served.metric("engine_faults") == 0
    assert not [line for line in served.lines if " 500 " in line or "Traceback" in line or not line.isprintable()]
    assert not caplog.records  # errors that uvicorn logs


def test_a_full_server_answers_as_an_idle_one_and_its_memory_does_not_grow(ascii_run, tmp_path, attempts, draw):
    """Half of the clients are hostile. More texts arrive than the queue takes.

    The memory is compared after the second and the last of four parts. In the first one, all kinds of requests come for
    the first time.
    """
    bodies, found, faults, sizes = [GOOD | {"seed": seed, "max_tokens": 40} for seed in range(8)], Counter(), [], []
    weights = {name: np.array(w) for name, w in ascii_run.model.weights().items()}
    store.save(tmp_path / "tiny", store.Checkpoint(header=ascii_run.header, weights=weights, optimizer={}))
    options = ["--streams", 4, "--queue", 4, "--receive-timeout", 1.5, "--send-timeout", 1]
    served = ServedByCommand(tmp_path / "tiny", *options)
    with contextlib.ExitStack() as stack:
        stack.callback(served.stop)
        expected = [served.post(json=body).json()["choices"][0]["text"] for body in bodies]

        def work(number: int, own: random.Random) -> None:
            try:
                if own.random() < 0.5:
                    return attack(served, own)
                answer = served.post(json=bodies[number % 8])
                found[answer.status_code] += 1
                if answer.status_code == 200:
                    assert answer.json()["choices"][0]["text"] == expected[number % 8]
                else:
                    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0, answer
            except Exception as error:
                faults.append((number, repr(error)))

        count = attempts(16, 4000) // 4
        for _ in range(4):
            for thread in in_threads(work, count, 24, draw):
                thread.join()
            served.until_idle(30)
            sizes.append(served.resident())
        print("statuses", dict(found), "MiB after each part", [size >> 20 for size in sizes])
        assert not faults and found[200], (faults[:5], found)
        assert sizes[-1] - sizes[1] < 16 << 20, sizes
        assert served.metric("engine_faults") == 0
    assert not [line for line in served.lines if " 500 " in line or "Traceback" in line or "Error" in line]
