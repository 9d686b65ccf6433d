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


def measure(
    table: str,
    variants: dict[str, list[str]],
    seeds: list[int],
    common: list[str],
    before: dict[str, list[str]] | None = None,
) -> None:
    """Trains each variant with each seed, unless the table has that row, and prints the table.

    Args:
        table: The name of the table.
        variants: {name of a variant: its arguments of `mlxgpt train`}.
        seeds: The seeds with which each variant is trained.
        common: Arguments of `mlxgpt train` that all variants share.
        before: {name of a variant: arguments of a run that is trained first}. The variant's run is fine-tuned from the
            last checkpoint of that run, and its row counts the tokens and the seconds of both.
    """
    path = RESULTS / f"{table}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for name, arguments in variants.items():
        first = (before or {}).get(name)
        for seed in seeds:
            if not any((row["name"], row["seed"]) == (name, seed) for row in rows):
                shared = [*common, "--seed", str(seed)]
                row = train([*shared, *arguments], [*shared, *first] if first else None)
                rows.append({"name": name, "seed": seed} | row)
                path.parent.mkdir(exist_ok=True)
                path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
                print(summary(rows, name), flush=True)
    print("\n".join(["", *(summary(rows, name) for name in variants)]))


def train(arguments: list[str], before: list[str] | None = None) -> dict:
    """Trains once and returns the values of a row.

    With `before`, the arguments of another run, that run is trained first, and this one is fine-tuned from it.

    `val_loss` is the validation loss of the last evaluation, `best_loss` the lowest one, and `train_loss` the mean
    training loss of the last 20 steps.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start, tokens = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        fine_tune = []
        if before:
            tokens = run(f"{folder}/before", before)[-1]["tokens"]
            fine_tune = ["--fine-tune", f"{folder}/before/checkpoint.safetensors"]
        reports = run(f"{folder}/run", [*arguments, *fine_tune])
    seconds = time.perf_counter() - start
    evaluations = [r for r in reports if r["report"] == "eval"]
    steps = [r["loss"] for r in reports if r["report"] == "step"]
    best = min(evaluations, key=lambda r: r["loss"])
    return {
        "val_loss": round(evaluations[-1]["loss"], 4),
        "best_loss": round(best["loss"], 4),
        "best_tokens": tokens + best["tokens"],
        "train_loss": round(statistics.mean(steps[-20:]), 4),
        "tokens": tokens + reports[-1]["tokens"],
        "seconds": round(seconds, 1),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "arguments": " ".join(arguments),
        **({"before": " ".join(before)} if before else {}),
    }


def run(folder: str, arguments: list[str]) -> list[dict]:
    """Runs `mlxgpt train` with these arguments and returns its reports."""
    command = [sys.executable, "-m", "mlx_gpt", "train", "--json", "--out", folder, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


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
