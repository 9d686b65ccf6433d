"""Runs `mlxgpt train` for each row of a table of results.

The row of a finished run is written to results/TABLE.json. A run whose row exists is not repeated.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def measure(table: str, variants: dict[str, list[str]], seeds: list[int], common: list[str]) -> None:
    """Trains each variant with each seed, unless the table has that row, and prints the table.

    Args:
        table: The name of the table.
        variants: {name of a variant: its arguments of `mlxgpt train`}.
        seeds: The seeds with which each variant is trained.
        common: Arguments of `mlxgpt train` that all variants share.
    """
    path = RESULTS / f"{table}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name, arguments in variants.items():
        for seed in seeds:
            if not any((row["name"], row["seed"]) == (name, seed) for row in rows):
                rows.append({"name": name, "seed": seed} | train([*common, *arguments, "--seed", str(seed)]))
                path.parent.mkdir(exist_ok=True)
                path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
                print(summary(rows, name), flush=True)
    print("\n".join(["", *(summary(rows, name) for name in variants)]))


def train(arguments: list[str]) -> dict:
    """Trains once and returns the values of a row.

    `val_loss` is the validation loss of the last evaluation, `best_loss` the lowest one, and `train_loss` the mean
    training loss of the last 20 steps.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlx_gpt", "train", "--json", "--out", f"{folder}/run", *arguments]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    evaluations = [r for r in reports if r["report"] == "eval"]
    steps = [r["loss"] for r in reports if r["report"] == "step"]
    best = min(evaluations, key=lambda r: r["loss"])
    return {
        "val_loss": round(evaluations[-1]["loss"], 4),
        "best_loss": round(best["loss"], 4),
        "best_tokens": best["tokens"],
        "train_loss": round(statistics.mean(steps[-20:]), 4),
        "tokens": reports[-1]["tokens"],
        "seconds": round(seconds, 1),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "arguments": " ".join(arguments),
    }


def summary(rows: list[dict], name: str) -> str:
    """Describes a variant in one line: validation losses over its seeds, and training loss and time of its last run."""
    own = [row for row in rows if row["name"] == name]
    losses = [row["val_loss"] for row in own]
    spread = f" +- {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    mean, best = (statistics.mean(row[key] for row in own) for key in ("val_loss", "best_loss"))
    return (
        f"{name:<24} {mean:.4f}{spread} (median {statistics.median(losses):.4f} of {len(own)}), best {best:.4f}, "
        f"train {own[-1]['train_loss']:.4f}, {own[-1]['seconds']:.0f} s"
    )
