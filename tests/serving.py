"""A server in a thread of the test process, and functions that send requests to it."""

import contextlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
from constants import ROOT

from mlx_gpt.serve import Served as Model
from mlx_gpt.serve import serve
from mlx_gpt.web import server

CONTEXT = 64
TLS = ssl.create_default_context()  # shared, because it takes httpx longer to make one than to send a request
CARD = {"id": "tiny", "object": "model", "created": 1, "owned_by": "mlxgpt", "meta": {"n_ctx": CONTEXT}}


class Served:
    """A server on a free port of 127.0.0.1, in a thread of this process.

    The constructor returns when the server accepts connections.

    Args:
        run: The model and tokenizer that are served, or a list of serve.Served.
        options: Arguments of mlx_gpt.serve.serve().

    Attributes:
        url: The address of the server.
        lines: The lines of its log.
        error: The exception that ended the server, or None.
    """

    def __init__(self, run, **options):
        self.listening = server.bind("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]
        self.url, self.lines, self.error = f"http://127.0.0.1:{self.port}", [], None
        self._ready, self._options = threading.Event(), options
        self._thread = threading.Thread(target=self._run, args=(run,))
        self._thread.start()
        assert self._ready.wait(60) and self.error is None, self.error

    def _run(self, run):
        try:
            options = {"num_slots": 4, "max_waiting": 16} | self._options
            models = [Model(network=run.model, tokenizer=run.tokenizer, card=CARD)] if hasattr(run, "model") else run
            serve(
                self.listening,
                models,
                log=self.lines.append,
                on_ready=self._on_ready,
                **options,
            )
        except Exception as error:
            self.error = error
        finally:
            self._ready.set()

    def _on_ready(self, stop):
        self._stop = stop
        self._ready.set()

    def stop(self):
        """Stops the server and waits until its thread has ended."""
        self._stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def join(self):
        """Waits until the server has stopped by itself."""
        self._thread.join(20)
        assert not self._thread.is_alive()

    def metric(self, name):
        """Returns the value of the metric mlxgpt_NAME in /metrics, summed over its labels."""
        text = httpx.get(f"{self.url}/metrics", headers=self._headers(), verify=TLS).text
        return sum(float(v) for v in re.findall(rf"^mlxgpt_{name}(?:{{.*}})? (\S+)$", text, re.M))

    def _headers(self):
        access = self._options.get("access")
        return {"Authorization": f"Bearer {access.key}"} if access and access.key else {}

    def until_idle(self, seconds=10):
        """Waits until no text is being generated or waits for a slot. Fails after this many seconds."""
        end = time.monotonic() + seconds
        while self.metric("texts_active") + self.metric("texts_waiting"):
            assert time.monotonic() < end
            time.sleep(0.02)

    def post(self, path="/v1/completions", json=None, **options):
        return httpx.post(self.url + path, json=json, timeout=30, verify=TLS, **options)


class ServedByCommand(Served):
    """`mlxgpt serve` in a process of its own. The file `log` in the folder of the checkpoint has what it prints.

    Args:
        checkpoint: The file that is served.
        options: Options of the command.
    """

    def __init__(self, checkpoint, *options):
        self._options, self.log = {}, checkpoint.parent / "log"
        command = [sys.executable, "-m", "mlx_gpt", "serve", str(checkpoint), "--port", "0", *map(str, options)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        self.url = re.search(r"http://[\d.:]+", self._process.stdout.readline())[0]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def lines(self):
        """The lines of its log so far."""
        return self.log.read_text().splitlines()

    def resident(self):
        """Returns the resident memory of the process in bytes."""
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self._process.pid)])) * 1024

    def stop(self):
        """Ends the process by a signal and waits until it has ended."""
        self._process.terminate()
        self._process.communicate(timeout=60)
        assert self._process.returncode == -signal.SIGTERM


@contextlib.contextmanager
def serving(run, **options):
    """A context that yields a Served and stops it on exit."""
    served = Served(run, **options)
    try:
        yield served
    finally:
        served.stop()


def complete(client, prompt="Hello", **options):
    """Requests a completion with an OpenAI client."""
    return client.completions.create(model="tiny", prompt=prompt, **{"max_tokens": 20, "seed": 7} | options)


def chat(client, text="Hello", **options):
    """Requests a chat completion with an OpenAI client. `text` is the user's message, or a list of messages."""
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 20, "seed": 7} | options)


def connect(served, data=b""):
    """Returns a TCP connection to the server, over which `data` was sent."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    sock.sendall(data)
    return sock


def raw(body=b"", head="POST /v1/completions", headers=()):
    """Returns the bytes of an HTTP/1.1 request.

    Content-Length is added unless `headers` has a length or a transfer encoding.
    """
    lines = [f"{head} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if not any("transfer" in h.lower() or "length" in h.lower() for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def everything(sock):
    """Returns all bytes that arrive until the other side closes the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data
