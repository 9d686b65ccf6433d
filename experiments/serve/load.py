"""Compares `mlxgpt serve`, which batches requests, with servers that handle one request at a time.

    python experiments/serve/load.py CHECKPOINT [--clients 1,4,16] [--tokens 128] [--rounds 3] [--before FOLDER]
        [--out FILE]

The servers are plain.py ("plain"), `mlxgpt serve --streams 1` ("streams 1"), `mlxgpt serve` ("batched"), and, with
--before, `mlxgpt serve` of the version of mlxgpt in FOLDER ("before"). They get the same streaming requests, in turns.
For each server and number of concurrent clients, the script prints medians over the rounds of: the tokens per second of
all clients together, percentiles of the time to the first token, and percentiles of the time between two tokens. All
times are measured at the client.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROMPT = "ROMEO:\nWhat say you"


def free_port() -> int:
    """Returns a TCP port of the loopback interface that no socket uses."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(kind: str, checkpoint: str, before: Path | None) -> tuple[subprocess.Popen, int]:
    """Starts a server of a kind that the module docstring names. Returns its process and port when it is ready."""
    port = free_port()
    serve = [sys.executable, "-m", "mlx_gpt", "serve", checkpoint, "--port", str(port)]
    command = {
        "batched": serve,
        "before": serve,
        "streams 1": [*serve, "--streams", "1"],
        "plain": [sys.executable, Path(__file__).with_name("plain.py"), checkpoint, str(port)],
    }[kind]
    folder = before if kind == "before" else Path(__file__).parents[2]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    process.stdout.readline()  # each server prints a line when it is ready
    return process, port


async def stream(port: int, tokens: int, seed: int) -> tuple[list[float], int]:
    """Sends a streaming request and reads its response to the end.

    Returns:
        The time at which the request was sent, followed by the time at which each event with text arrived, in seconds;
        and the number of generated tokens.
    """
    asked = {"prompt": PROMPT, "max_tokens": tokens, "seed": seed, "temperature": 0.8, "top_p": 0.9, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    body = json.dumps(asked).encode()
    times = [time.perf_counter()]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while (line := (await reader.readline()).strip()) != b"data: [DONE]":
        if not line.startswith(b"data: "):
            continue
        frame = json.loads(line[len(b"data: ") :])
        if frame.get("usage"):
            tokens = frame["usage"]["completion_tokens"]
        elif frame["choices"][0]["text"]:
            times.append(time.perf_counter())
    writer.close()
    return times, tokens


async def load(port: int, clients: int, tokens: int) -> dict:
    """Runs `clients` concurrent requests of at most `tokens` tokens each.

    Returns:
        The rate and the latencies by name.
    """
    begin = time.perf_counter()
    times, counts = zip(*await asyncio.gather(*(stream(port, tokens, seed) for seed in range(clients))), strict=True)
    seconds = time.perf_counter() - begin
    first = [1e3 * (t[1] - t[0]) for t in times]
    between = np.concatenate([1e3 * np.diff(t[1:]) for t in times])
    return {
        "tokens_per_second": sum(counts) / seconds,
        "first_token_ms_p50": float(np.median(first)),
        "first_token_ms_p95": float(np.percentile(first, 95)),
        "between_ms_p50": float(np.median(between)),
        "between_ms_p95": float(np.percentile(between, 95)),
        "between_ms_max": float(between.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts = [int(n) for n in options.clients.split(",")]
    kinds = ["plain", "streams 1", "batched"] + ["before"] * bool(options.before)
    servers = {kind: start(kind, str(options.checkpoint.resolve()), options.before) for kind in kinds}
    found = {(kind, n): [] for kind in servers for n in counts}
    try:
        for _, port in servers.values():
            asyncio.run(load(port, 1, 16))  # warm-up
        for _ in range(options.rounds):
            for kind, n in found:
                found[kind, n].append(asyncio.run(load(servers[kind][1], n, options.tokens)))
    finally:
        for process, _ in servers.values():
            process.terminate()
    rows = [
        {"server": kind, "clients": n}
        | {key: round(float(np.median([r[key] for r in rounds])), 1) for key in rounds[0]}
        for (kind, n), rounds in found.items()
    ]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    if options.out:
        about = {
            "machine": platform.processor() or platform.machine(),
            "tokens": options.tokens,
            "rounds": options.rounds,
        }
        options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
