"""The server over real sockets: OpenAI's own client, limits, hostile requests, clients that go, the end."""

import asyncio
import concurrent.futures
import contextlib
import json
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from commands import mlxgpt, process
from serving import CONTEXT, Served, serving

from mlx_gpt.checkpoint import store
from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.slots import Slots
from mlx_gpt.serve.schema import TURN, Limits
from mlx_gpt.web import server
from mlx_gpt.web.guard import Access


@pytest.fixture(scope="module")
def run(ascii_run):
    return ascii_run


@pytest.fixture(scope="module")
def served(run):
    with serving(run) as served:
        yield served


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, prompt="Hello", **options):
    return client.completions.create(model="tiny", prompt=prompt, **{"max_tokens": 20, "seed": 7} | options)


def chat(client, text="Hello", **options):
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 20, "seed": 7} | options)


# -- OpenAI's client ------------------------------------------------------------------------------------------------


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mlxgpt"
    with pytest.raises(openai.NotFoundError, match="other/model"):
        client.models.retrieve("other/model")


def test_a_completion_has_text_reason_and_usage(client):
    answer = complete(client)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length" and len(answer.choices[0].text) <= 20
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 20, 25)


def test_a_seed_repeats_a_text_and_no_seed_does_not(client):
    texts = [complete(client, seed=seed, temperature=1.0).choices[0].text for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1] and len(set(texts)) == 4


def test_n_texts_of_each_prompt(client):
    answer = complete(client, ["Hello", "Bye"], n=3, temperature=1.0)
    assert [c.index for c in answer.choices] == list(range(6)) and len({c.text for c in answer.choices}) == 6
    assert answer.usage.prompt_tokens == 8
    assert answer.usage.completion_tokens == sum(
        20 if c.finish_reason == "length" else len(c.text) + 1 for c in answer.choices
    )
    assert answer.choices[0].text == complete(client, temperature=1.0).choices[0].text


def test_ids_are_prompts_too(client, run):
    ids = run.tokenizer.encode("Hello").tolist()
    assert [c.text for c in complete(client, [ids, ids]).choices][0] == complete(client).choices[0].text
    assert complete(client, ids).choices[0].text == complete(client).choices[0].text


def test_stop_strings(client):
    whole = complete(client, max_tokens=60).choices[0].text
    cut = complete(client, max_tokens=60, stop=[whole[9:12], "never"]).choices[0]
    assert cut.text == whole[: whole.index(whole[9:12])] and cut.finish_reason == "stop"


@pytest.mark.parametrize("stop", [None, "qj"])
def test_a_stream_is_the_whole_in_pieces(client, stop):
    whole = complete(client, max_tokens=60, logprobs=3, stop=stop)
    frames = list(
        complete(client, max_tokens=60, logprobs=3, stop=stop, stream=True, stream_options={"include_usage": True})
    )
    assert len({f.id for f in frames}) == 1 and len(frames) > 10
    assert "".join(f.choices[0].text for f in frames[:-1]) == whole.choices[0].text
    assert [f.choices[0].finish_reason for f in frames[:-1]][-2:] == [None, whole.choices[0].finish_reason]
    assert frames[-1].choices == [] and frames[-1].usage == whole.usage
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [x for f in frames[:-1] for x in getattr(f.choices[0].logprobs, field)]
        assert told == getattr(whole.choices[0].logprobs, field)


def test_logprobs_belong_to_the_text(client):
    told = complete(client, logprobs=5).choices[0]
    assert "".join(told.logprobs.tokens) == told.text
    for token, logprob, top in zip(
        told.logprobs.tokens, told.logprobs.token_logprobs, told.logprobs.top_logprobs, strict=True
    ):
        assert logprob <= 0 and 5 <= len(top) <= 6 and top[token] == logprob
    none = complete(client, logprobs=0).choices[0].logprobs
    assert [list(top) for top in none.top_logprobs] == [[token] for token in none.tokens]


def test_echo_scores_the_prompt(client):
    answer = complete(client, "Hello", echo=True, logprobs=1, max_tokens=0)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "Hello" and logprobs.tokens == list("Hello")
    assert logprobs.token_logprobs[0] is None and all(x < 0 for x in logprobs.token_logprobs[1:])
    assert complete(client, "Hello", echo=True).choices[0].text == "Hello" + complete(client).choices[0].text


def test_chat_is_a_completion_of_the_template(client):
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Go on"},
    ]
    answer = chat(client, messages, max_tokens=30)
    turns = [("System", "Be brief"), ("User", "Hello"), ("Assistant", "Yes"), ("User", "Go on")]
    prompt = "".join(TURN.format(role=role, content=text) for role, text in turns) + "Assistant:\n"
    assert answer.choices[0].message.content == complete(client, prompt, max_tokens=30, stop="\n\n").choices[0].text
    assert answer.object == "chat.completion" and answer.usage.prompt_tokens == len(prompt)
    developer = chat(client, [{"role": "developer", "content": "Be brief"}, *messages[1:]], max_tokens=30)
    assert developer.choices[0].message.content == answer.choices[0].message.content


def test_a_chat_stream_begins_with_the_role_and_ends_with_a_reason(client):
    whole = chat(client, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=40, max_tokens=None, temperature=1.0)
    frames = list(chat(client, n=2, logprobs=True, top_logprobs=2, max_tokens=40, temperature=1.0, stream=True))
    for index, choice in enumerate(whole.choices):
        own = [f.choices[0] for f in frames if f.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        told = [entry for c in own if c.logprobs for entry in c.logprobs.content]
        assert told == choice.logprobs.content
        assert bytes(b for entry in told for b in entry.bytes).decode() == choice.message.content


def test_the_async_client(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.completions.create(model="tiny", prompt="Hello", max_tokens=20, seed=7)
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=20, seed=7, stream=True
            )
            return whole.choices[0].text, [frame async for frame in stream]

    text, frames = asyncio.run(ask())
    assert len(text) <= 20 and frames[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"model": "../../etc/passwd"}, openai.NotFoundError, "not served"),
        ({"temperature": -1}, openai.BadRequestError, "temperature=-1"),
        ({"temperature": 1e6}, openai.BadRequestError, "temperature"),
        ({"top_p": -1}, openai.BadRequestError, "top_p"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens=5,000"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens=-1"),
        ({"max_tokens": 1.5}, openai.BadRequestError, "max_tokens=1.5"),
        ({"n": 17}, openai.BadRequestError, "n: 17"),
        ({"n": 0}, openai.BadRequestError, "n=0"),
        ({"logprobs": 6}, openai.BadRequestError, "logprobs=6"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "only with stream"),
        ({"stop": ""}, openai.BadRequestError, "stop"),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop"),
        ({"suffix": "x"}, openai.BadRequestError, "suffix is not supported"),
        ({"best_of": 2}, openai.BadRequestError, "best_of"),
        ({"logit_bias": {"1": 2}}, openai.BadRequestError, "logit_bias"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty"),
        ({"prompt": "é"}, openai.BadRequestError, "U\\+00E9"),
        ({"prompt": [-1]}, openai.BadRequestError, "ids from -1"),
        ({"prompt": [[1, 10**6]]}, openai.BadRequestError, "1000000"),
        ({"prompt": ["a", [1]]}, openai.BadRequestError, "mixed"),
        ({"prompt": "a" * 100_001}, openai.BadRequestError, "100,001"),
        ({"seed": 2**64}, openai.BadRequestError, "seed"),
    ],
)
def test_bad_values_are_named(client, options, error, words):
    with pytest.raises(error, match=words) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a"} | options)
    assert caught.value.body["type"] == "invalid_request_error"
    name = next(iter(options))
    assert caught.value.body["param"] == name


@pytest.mark.parametrize(
    "neutral", [{"best_of": 1}, {"logit_bias": {}}, {"presence_penalty": 0}, {"user": "me"}, {"stop": None}]
)
def test_values_that_change_nothing_are_taken(client, neutral):
    assert complete(client, **neutral).choices[0].text == complete(client).choices[0].text


@pytest.mark.parametrize(
    "body, words",
    [
        ({"max_token": 5}, "did you mean max_tokens?"),
        ({"Prompt": "a"}, "did you mean prompt?"),
        ({"min_p": 0.1}, "min_p: no such field"),
    ],
)
def test_unknown_fields_are_named(served, body, words):
    refused = served.post(json=body)
    assert refused.status_code == 400 and words in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{}],
    ],
)
def test_messages_of_other_kinds_are_refused(client, messages):
    with pytest.raises(openai.BadRequestError, match="messages"):
        chat(client, messages)


def test_randygpts_own_shape(served, client):
    answer = served.post("/", {"prompt": "Hello", "max_tokens": 12, "temperature": 0}).json()
    assert answer["text"] == "Hello" + complete(client, temperature=0, max_tokens=12).choices[0].text
    assert answer["model"] == "tiny" and answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12}


# -- many at once ---------------------------------------------------------------------------------------------------


def test_a_text_is_the_same_alone_and_among_15_others(run):
    with serving(run, num_slots=16) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:

        def ask(seed):
            prompt = "Hello" * (seed % 7 + 1)
            return complete(client, prompt, seed=seed, max_tokens=60, temperature=1.0).choices[0].text

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, range(16)))
        assert together == [ask(seed) for seed in range(16)]


def test_a_full_queue_says_when_to_come_back(run):
    with serving(run, num_slots=1, max_waiting=1) as served:
        held = [httpx.Client() for _ in range(2)]
        streams = [
            c.stream(
                "POST",
                served.url + "/v1/completions",
                json={"prompt": "a", "max_tokens": 4096, "stream": True, "temperature": 0},
                timeout=30,
            )
            for c in held
        ]
        with contextlib.ExitStack() as stack:
            for stream in streams:
                assert stack.enter_context(stream).status_code == 200
            refused = served.post(json={"prompt": "a"})
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
                with pytest.raises(openai.RateLimitError):
                    complete(client)
        served.until_idle()
        assert served.post(json={"prompt": "a"}).status_code == 200


def test_what_does_not_fit_slides_or_is_refused(run, client):
    assert len(complete(client, "a" * 200, max_tokens=100).choices) == 1
    with serving(run, limits=Limits(slides=False)) as served:
        refused = served.post(json={"prompt": "a" * 50, "max_tokens": 15}).json()["error"]
        assert (refused["code"], refused["n_prompt_tokens"], refused["n_ctx"]) == (
            "context_length_exceeded",
            50,
            CONTEXT,
        )
        assert served.post(json={"prompt": "a" * 50, "max_tokens": 14}).status_code == 200
        answer = served.post(json={"prompt": "a" * 60, "temperature": 0}).json()
        assert answer["usage"]["completion_tokens"] == 4  # as far as there is room


# -- clients that go, senders and readers that are slow -------------------------------------------------------------


def connect(served, data=b""):
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    sock.sendall(data)
    return sock


def raw(body=b"", head="POST /v1/completions", headers=()):
    lines = [f"{head} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if not any("transfer" in h.lower() or "length" in h.lower() for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def everything(sock):
    """All that comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data


@pytest.mark.parametrize("stream", [True, False])
def test_the_work_for_a_client_that_went_ends(served, stream):
    with connect(
        served, raw(json.dumps({"prompt": "a", "max_tokens": 4096, "stream": stream, "temperature": 0}).encode())
    ) as sock:
        while not served.metric("texts_active"):
            time.sleep(0.01)
        if stream:
            assert sock.recv(10)
    served.until_idle(seconds=3)


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


# -- hostile requests -----------------------------------------------------------------------------------------------

GOOD = b'{"prompt": "a", "max_tokens": 1}'
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


# -- the key, hosts, origins ----------------------------------------------------------------------------------------


def test_with_a_key_everything_but_the_page_and_health_needs_it(run):
    with serving(run, access=Access(key="sesame")) as served:
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/nothing"):
            assert httpx.get(served.url + path).status_code == 401
            for wrong in ("Bearer", "Bearer wrong", "Basic sesame", "sesame", "Bearer sesame\u00e9"):
                headers = {"Authorization": wrong.encode("latin-1")}
                refused = httpx.get(served.url + path, headers=headers)
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        for path in WRITES:
            assert served.post(path, {"prompt": "a"}).status_code == 401
        for path in ("/", "/page.css", "/page.js", "/health"):
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
    for path in ("/", "/page.js", "/health", "/v1/models", "/nothing"):
        headers = httpx.get(served.url + path).headers
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert headers["x-request-id"].startswith("req-") and "server" not in headers


# -- faults and the end ---------------------------------------------------------------------------------------------


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
        (["--allow-origin", "evil.com"], 2, "evil.com https://"),
        (["--allow-host", "http://x.com/"], 2, "x.com name"),
        (["--api-key-file", "/nowhere"], 3, "/nowhere"),
        (["--api-key-file", "/dev/null"], 3, "empty"),
        (["--context-policy", "drop"], 2, "slide error"),
    ],
)
def test_what_it_refuses_to_start_with(checkpoint, tmp_path, arguments, code, words):
    done = mlxgpt("serve", checkpoint, *arguments, cwd=tmp_path)
    told = done.stderr
    assert done.returncode == code
    assert told.startswith("error: ") and told.count("\n") == 1 and all(word in told for word in words.split()), told


def test_a_port_in_use_is_named(checkpoint, served, tmp_path):
    done = mlxgpt("serve", checkpoint, "--port", served.port, cwd=tmp_path)
    assert done.returncode == 2 and str(served.port) in done.stderr and "--port" in done.stderr


def test_the_card_and_the_key_of_the_command(checkpoint):
    with command(checkpoint, "--name", "mine", MLXGPT_API_KEY="sesame") as (_, url):
        card = httpx.get(url + "/v1/models/mine", headers={"x-api-key": "sesame"}).json()
        assert httpx.get(url + "/v1/models").status_code == 401
        assert card["meta"]["n_ctx"] == CONTEXT and card["meta"]["chat_template"] == TURN
        assert card["meta"]["n_params"] > 1000
