"""Faults of the scheduler, and the end of the server."""

import asyncio
import concurrent.futures
import contextlib
import re
import signal
import threading
import time
import types
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from commands import mlxgpt, process
from serving import CONTEXT, Served, complete, connect, raw, serving

from mlx_gpt.checkpoint import store
from mlx_gpt.generation.job import Piece
from mlx_gpt.generation.slots import Slots
from mlx_gpt.model.cost import decoding_bytes
from mlx_gpt.serve.app import arriving
from mlx_gpt.serve.prometheus import Metrics
from mlx_gpt.serve.schema import TURN
from mlx_gpt.web import server
from mlx_gpt.web.errors import ApiError


def test_a_fault_reaches_the_client_and_the_next_request_works(served, client, monkeypatch):
    real = Slots.step

    def fail_once(*arguments):
        monkeypatch.setattr(Slots, "step", real)
        raise RuntimeError("device lost")

    monkeypatch.setattr(Slots, "step", fail_once)
    with pytest.raises(openai.InternalServerError, match="RuntimeError"):
        complete(client)
    monkeypatch.setattr(Slots, "step", fail_once)
    with pytest.raises(openai.APIError, match="RuntimeError"):
        list(complete(client, stream=True))
    assert complete(client).choices


def test_health_tells_a_stall(served, monkeypatch):
    gate, real = threading.Event(), Slots.step
    assert httpx.get(served.url + "/health").status_code == 200
    monkeypatch.setattr("mlx_gpt.generation.scheduler.STALLED_AFTER", 0.3)
    monkeypatch.setattr(Slots, "step", lambda *a: gate.wait(20) and real(*a))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, json={"prompt": "a", "max_tokens": 5})
        end = time.monotonic() + 10
        while (stalled := httpx.get(served.url + "/health")).status_code == 200:
            assert time.monotonic() < end
        gate.set()
        assert stalled.status_code == 503 and stalled.json()["error"]["code"] == "stalled"
        assert asked.result().status_code == 200


def test_a_step_that_hangs_does_not_keep_the_server_from_its_end(run, monkeypatch):
    monkeypatch.setattr(server, "GRACE", 0.3)
    gate, real = threading.Event(), Slots.step
    with serving(run) as served, connect(served, raw(b'{"prompt": "a"}')):
        monkeypatch.setattr(Slots, "step", lambda *a: gate.wait(20) and real(*a))
        while not served.metric("texts_active"):
            time.sleep(0.01)
        start = time.monotonic()
        served.stop()
        assert time.monotonic() - start < 5
    gate.set()


def test_a_server_whose_engine_failed_for_good_ends(run, monkeypatch):
    served = Served(run)

    def fail(*_):
        raise RuntimeError("device lost")

    monkeypatch.setattr(Slots, "read", fail)
    for _ in range(3):
        with contextlib.suppress(httpx.HTTPError):
            assert served.post(json={"prompt": "a"}).status_code == 503
    served.join()
    assert served.error.exit_code == 1 and "device lost" in str(served.error)


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny.safetensors"
    weights = {k: np.array(w) for k, w in run.model.weights().items()}
    store.save(path, store.Checkpoint(header=run.header, weights=weights, optimizer={}))
    return path


@contextlib.contextmanager
def command(*arguments, **environment):
    """`mlxgpt serve` as a process, and its address."""
    with process("serve", *arguments, "--port", 0, cwd=Path(), env=environment) as running:
        try:
            yield running, re.search(r"http://[\d.:]+", running.stdout.readline())[0]
        finally:
            running.kill()


def test_a_second_signal_ends_the_texts_at_once(checkpoint):
    with command(checkpoint) as (running, url):
        body = {"prompt": "a", "max_tokens": 4000, "stream": True, "temperature": 0}
        with httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            running.send_signal(signal.SIGINT)
            while httpx.get(url + "/health").status_code == 200:
                pass
            start = time.monotonic()
            running.send_signal(signal.SIGINT)
            assert "shutting down" in list(lines)[-1]
        assert running.wait(10) == 130 and time.monotonic() - start < 2
        told = running.stderr.read()
        assert "stopping: 1 texts" in told and "Traceback" not in told


SIGNALS = [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), (signal.SIGHUP, -signal.SIGHUP)]


@pytest.mark.parametrize("sign, code", SIGNALS)
def test_a_signal_ends_a_server_without_work_at_once(checkpoint, sign, code):
    with command(checkpoint) as (running, _):
        start = time.monotonic()
        running.send_signal(sign)
        assert running.wait(10) == code and time.monotonic() - start < 3


@pytest.mark.parametrize(
    "sign, code", [SIGNALS[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in SIGNALS[1:])]
)
def test_a_signal_ends_16_streams_within_6_seconds_each_with_an_end(checkpoint, sign, code):
    with command(checkpoint, "--max-tokens", 1_000_000) as (running, url):
        ends, open_ = [None] * 16, threading.Barrier(17)

        def stream(i):
            tokens = 1_000_000 if i % 2 else 3000
            body = {"prompt": "a", "max_tokens": tokens, "stream": True, "temperature": 0}
            with httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) as answer:
                lines = (line for line in answer.iter_lines() if line)
                next(lines)
                open_.wait()
                for line in lines:
                    ends[i] = line

        threads = [threading.Thread(target=stream, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        open_.wait()
        start = time.monotonic()
        running.send_signal(sign)
        assert running.wait(10) == code and time.monotonic() - start < 6
        for thread in threads:
            thread.join(10)
        assert all(end == "data: [DONE]" or '"error"' in end for end in ends), ends
        assert any("shutting down" in end for end in ends)


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--host", "0.0.0.0"], 2, "--api-key-file MLXGPT_API_KEY --insecure"),
        (["--host", "nonsense.invalid"], 2, "nonsense.invalid --api-key-file"),
        (["--host", "256.1.1.1", "--insecure"], 2, "256.1.1.1 --host"),
        (["--port", "99999"], 2, "99999 65535"),
        (["--streams", "0"], 2, "--streams"),
        (["--host", ""], 2, "--host empty"),
        (["--name", ""], 2, "--name"),
        (["other.safetensors", "--name", "both"], 2, "--name 'both' 2 are given"),
        (["--allow-origin", "evil.com"], 2, "evil.com https://"),
        (["--allow-host", "http://x.com/"], 2, "x.com name"),
        (["--api-key-file", "/nowhere"], 2, "/nowhere no such"),
        (["--api-key-file", "/dev/null"], 3, "empty"),
        (["--api-key-file", "/dev/zero"], 3, "/dev/zero 4096"),
        (["--context-policy", "drop"], 2, "slide error"),
    ],
)
def test_what_it_refuses_to_start_with(checkpoint, tmp_path, arguments, code, words):
    done = mlxgpt("serve", checkpoint, *arguments, cwd=tmp_path)
    told = done.stderr
    assert done.returncode == code
    assert told.startswith("error: ") and told.count("\n") == 1 and all(word in told for word in words.split()), told


def test_two_checkpoints_are_served_together(checkpoint, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes())
    with command(checkpoint, other) as (_, url):
        assert [card["id"] for card in httpx.get(url + "/v1/models").json()["data"]] == ["tiny", "other"]
        bodies = [{"prompt": "a", "seed": 1, "model": id} for id in ("tiny", "other")]
        answers = [httpx.post(url + "/v1/completions", json=body, timeout=30).json() for body in bodies]
        assert [answer["model"] for answer in answers] == ["tiny", "other"]
        assert answers[0]["choices"] == answers[1]["choices"]


def test_a_port_in_use_is_named(checkpoint, served, tmp_path):
    done = mlxgpt("serve", checkpoint, "--port", served.port, cwd=tmp_path)
    assert done.returncode == 2 and str(served.port) in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("mode, warns", [(0o600, False), (0o640, True), (0o604, True)])
def test_a_key_that_others_can_read_is_warned_of(tmp_path, mode, warns):
    (tmp_path / "key").write_text("sesame\nanother line\n")
    (tmp_path / "key").chmod(mode)
    told = mlxgpt("serve", "absent.safetensors", "--api-key-file", "key", cwd=tmp_path).stderr.splitlines()
    assert ("absent.safetensors" in told[-1], len(told)) == (True, 1 + warns)
    assert not warns or told[0].startswith("warning: ") and "chmod 600 key" in told[0]


def test_the_first_line_of_the_key_file_is_the_key(checkpoint, tmp_path):
    (tmp_path / "key").write_text("sesame\nanother line\n")
    with command(checkpoint, "--api-key-file", tmp_path / "key", MLXGPT_API_KEY="other") as (_, url):
        keys = "sesame", "other", "another line"
        codes = [httpx.get(url + "/v1/models", headers={"x-api-key": key}).status_code for key in keys]
        assert codes == [200, 401, 401]


def test_the_card_and_the_key_of_the_command(checkpoint):
    with command(checkpoint, "--name", "mine", MLXGPT_API_KEY="sesame") as (_, url):
        card = httpx.get(url + "/v1/models/mine", headers={"x-api-key": "sesame"}).json()
        assert httpx.get(url + "/v1/models").status_code == 401
        assert card["meta"]["n_ctx"] == CONTEXT and card["meta"]["chat_template"] == TURN
        assert card["meta"]["n_params"] > 1000
        facts = decoding_bytes(store.load(checkpoint).header.config.model)
        assert card["meta"]["decoding_bytes_per_token"] > 0 and card["meta"].items() >= facts.items()


def test_text_that_comes_together_with_an_error_is_sent_before_it(run):
    """The loop may be late, and find tokens and the error of a later step in one reading of the inbox."""
    idle = types.SimpleNamespace(num_active=0, num_waiting=0, num_slots=1, num_faults=0, healthy=True)
    metrics = Metrics({"tiny": idle}).of("tiny")

    async def arrived():
        inbox, found = asyncio.Queue(), []
        for piece in (Piece(text="a", num_drawn=1), Piece(text="b", num_drawn=1), Piece(error="a step failed")):
            inbox.put_nowait((0, piece))
        with pytest.raises(ApiError, match="a step failed"):
            async for pieces in arriving(inbox, 1, 0.0, metrics):
                found += pieces
        return found

    [(index, piece)] = asyncio.run(arrived())
    assert (index, piece.text, piece.num_drawn) == (0, "ab", 2)
