"""Measures runs of several processes: loss and bytes sent, with gradients summed at each step and with local steps.

    python experiments/machines.py [--preset model-xs] [--iters 500] [--batch 16] [--ranks 2] [--every 0 1 10 50]
    python experiments/machines.py --outer 0.7,0.9 1,0 --seeds 1 2 3 --rows FILE

All processes run on this machine, over its loopback address, with one lane each. Every run makes the same number of
updates with the same batches, so all read equally many tokens. 0 sums the gradients of each update; another number is
train.sync_every. The table has the lowest validation loss, the last one, and the bytes that a process has sent over the
connections of the ring, as the Linux kernel counts them. The settings of --set apply to all runs. Rows are added to the
file of --rows, and a run whose row is there is not repeated.
"""

import argparse
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loopback import outputs

ACKED = 120  # the offset of tcpi_bytes_acked, a 64-bit number, in the kernel's struct tcp_info


def bytes_sent() -> int:
    """Returns the bytes that the other side of each open TCP connection of this process has acknowledged."""
    found: dict[int, int] = {}  # by inode, since a connection may have several descriptors
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # not a socket
        with connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            found[os.fstat(connection.fileno()).st_ino] = struct.unpack_from("Q", info, ACKED)[0]
    return sum(found.values())


def work(settings: dict, folder: str) -> None:
    """Trains as one rank of a group, and prints the bytes that it has sent."""
    import mlx_gpt

    settings = dict(settings)
    session = mlx_gpt.train(settings.pop("preset"), settings.pop("corpus"), settings=settings, out=folder)
    for _ in session:
        pass
    print(json.dumps({"bytes": bytes_sent()}), flush=True)


def run(settings: dict, ranks: int) -> dict:
    """Trains with several processes.

    Returns:
        The validation losses, the most bytes that a process has sent, the seconds of the run, and the commit.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        printed = outputs([sys.executable, __file__, "--work", json.dumps(settings), f"{folder}/run"], ranks)
        lines = map(json.loads, Path(folder, "run/metrics.jsonl").read_text().splitlines())
        losses = [round(line["val_loss"], 4) for line in lines if line["report"] == "eval"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "val_losses": losses,
        "bytes": max(json.loads(text.splitlines()[-1])["bytes"] for text in printed),
        "seconds": round(time.perf_counter() - start),
        "commit": commit,
    }


def main() -> None:
    """Runs every case and prints a line of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="model-xs")
    parser.add_argument("--corpus", default="shakespeare")
    parser.add_argument("--iters", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--every", type=int, nargs="+", default=[0, 1, 10, 50])
    parser.add_argument("--outer", nargs="+", default=["0.7,0.9"], metavar="RATE,MOMENTUM", help="of the outer updates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--rows", type=Path, help="a JSON file of rows")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="a setting of all runs")
    arguments = parser.parse_args()
    common = {
        "preset": arguments.preset,
        "corpus": arguments.corpus,
        "train.iters": arguments.iters,
        "train.batch_size": arguments.batch,
        "train.eval_every": 50,
        "train.sample_every": 0,
        "train.save_minutes": 0,
        "optimizer.ema_decay": 0.0,
        "speed.lanes": 1,
    } | {key: json.loads(value) for key, _, value in (text.partition("=") for text in arguments.set)}
    path = arguments.rows
    rows = json.loads(path.read_text()) if path and path.exists() else []
    print(f"{arguments.ranks} processes, {arguments.preset}, {arguments.iters} updates of {arguments.batch} sequences")
    print("| sync_every | outer rate, momentum | seed | lowest validation loss | last | MB sent | MB per update |")
    print("|---|---|---|---|---|---|---|")
    for seed, every, outer in itertools.product(arguments.seeds, arguments.every, arguments.outer):
        rate, momentum = map(float, outer.split(",")) if every else (None, None)
        settings = common | {"train.seed": seed, "train.sync_every": every}
        if every:
            settings |= {"optimizer.outer_learning_rate": rate, "optimizer.outer_momentum": momentum}
        row = next((row for row in rows if (row["ranks"], row["settings"]) == (arguments.ranks, settings)), None)
        if not row:
            row = {"ranks": arguments.ranks, "settings": settings} | run(settings, arguments.ranks)
            rows.append(row)
            if path:
                path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        megabytes = row["bytes"] / 1e6
        cells = [every, outer if every else "", seed, f"{min(row['val_losses']):.4f}", f"{row['val_losses'][-1]:.4f}"]
        print("|", *cells, f"{megabytes:.1f}", f"{megabytes / arguments.iters:.3f}", "|", sep=" | ", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(json.loads(sys.argv[2]), sys.argv[3])
    else:
        main()
