"""Runs `mlxgpt train` for each row of a table of results.

The row of a finished run is written to results/TABLE.json. A run whose row exists is not repeated.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

if "--help" in sys.argv[1:]:  # of any script that imports this module
    print(sys.modules["__main__"].__doc__)
    raise SystemExit

RESULTS = Path(__file__).parent / "results"
OPTIMIZER = {"optimizer.name": "muon", "optimizer.newton_schulz": "jordan"}  # the default when most rows were measured
NORMUON = {"optimizer.name": "normuon", "optimizer.newton_schulz": "polar"}  # the default since then

# Short runs of llama-s: no dropout, and a learning rate that decreases linearly after a tenth of the run
SHORT = {
    "train.save_minutes": 0,
    "train.eval_every": 100_000,
    "optimizer.decay_start": 0.1,
    "optimizer.ema_decay": 0,
    "model.block_size": 128,
    "model.dropout": 0,
}

# llama-s with gated DeltaNet in the first two of its three layers
HYBRID = {"model.mixers": '["gated_delta","gated_delta","attention"]', "model.n_kv_head": 4}


def settings(values: dict) -> list[str]:
    """Returns the arguments of `mlxgpt train` for settings by dotted name."""
    return sets(*(f"{key}={value}" for key, value in values.items()))


def sets(*each: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` for settings such as "model.n_head=4"."""
    return [part for setting in each for part in ("--set", setting)]


def chosen(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Returns the names that were given to a script, or all that it knows. Ends the script if one is unknown."""
    names, known = list(names), list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"{unknown[0]}: choose from {', '.join(known)}")
    return names or known


def folder_argument() -> Path:
    """Returns the first argument of the script, the folder of its runs. Without one, prints the script's docstring."""
    if len(sys.argv) < 2:
        raise SystemExit(sys.modules["__main__"].__doc__)
    return Path(sys.argv[1])


def write_text(path: Path, train: str, val: str) -> float:
    """Writes a text with these two splits to a file, and returns its `data.val_fraction`."""
    path.write_text(train + val)
    return len(val) / len(train + val)


MUON = settings(OPTIMIZER)


def measure(
    table: str,
    variants: dict[str, list[str]],
    seeds: list[int],
    common: list[str],
    before: dict[str, list[str]] | None = None,
    folder: Path | None = None,
) -> None:
    """Trains each variant with each seed, unless the table has that row, and prints the table.

    Args:
        table: The name of the table.
        variants: {name of a variant: its arguments of `mlxgpt train`}.
        seeds: The seeds with which each variant is trained.
        common: Arguments of `mlxgpt train` that all variants share.
        before: {name of a variant: arguments of a run that is trained first}. The variant's run is fine-tuned from the
            last checkpoint of that run, and its row counts the tokens and the seconds of both.
        folder: Where the runs stay, so that one that was interrupted is resumed. None for a temporary folder.
    """
    path = RESULTS / f"{table}.json"
    for name, arguments in variants.items():
        first = (before or {}).get(name)
        for seed in seeds:
            if not any((row["name"], row["seed"]) == (name, seed) for row in rows_of(path)):
                shared = [*common, "--seed", str(seed)]
                with contextlib.ExitStack() as stack:
                    kept = folder and folder / f"{table}-{name}-{seed}".replace(" ", "-").replace(",", "")
                    out = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    row = train([*shared, *arguments], [*shared, *first] if first else None, out)
                rows = [*rows_of(path), {"name": name, "seed": seed} | row]  # other processes may have added rows
                path.parent.mkdir(exist_ok=True)
                path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
                print(summary(rows, name), flush=True)
    rows = rows_of(path)
    print("\n".join(["", *(summary(rows, name) for name in variants)]))


def rows_of(path: Path) -> list[dict]:
    """The rows of a table; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def train(arguments: list[str], before: list[str] | None, folder: Path) -> dict:
    """Trains once and returns the values of a row.

    With `before`, the arguments of another run, that run is trained first, and this one is fine-tuned from it.

    `val_loss` is the validation loss of the last evaluation, `best_loss` the lowest one, and `train_loss` the mean
    training loss of the last 20 steps. `seconds` is the time of training and evaluation.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    tokens, seconds, fine_tune = 0, 0.0, []
    if before:
        end = run(folder / "before", before)[-1]
        tokens, seconds = end["tokens"], end["elapsed"]
        fine_tune = ["--fine-tune", str(folder / "before/checkpoint.safetensors")]
    commit = version()
    reports = run(folder / "run", [*arguments, *fine_tune])
    evaluations = [r for r in reports if r["report"] == "eval"]
    steps = [r["loss"] for r in reports if r["report"] == "step"]
    best = min(evaluations, key=lambda r: r["val_loss"])
    return {
        "val_loss": round(evaluations[-1]["val_loss"], 4),
        "bits_per_byte": round(evaluations[-1]["val_bits_per_byte"], 4),
        "best_loss": round(best["val_loss"], 4),
        "best_tokens": tokens + best["tokens"],
        "train_loss": round(statistics.mean(steps[-20:]), 4),
        "tokens": tokens + reports[-1]["tokens"],
        "seconds": round(seconds + reports[-1]["elapsed"], 1),
        "commit": commit,
        "arguments": " ".join(arguments),
        **({"before": " ".join(before)} if before else {}),
    }


def version() -> str:
    """Returns the commit of the code, with "-dirty" if the package or the presets differ from it."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    differs = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "mlx_gpt", "presets"], cwd=root).returncode
    return commit.stdout.strip() + ("-dirty" if differs else "")


def run(folder: Path, arguments: list[str]) -> list[dict]:
    """Trains in a folder, or continues what was begun there with the same arguments, and returns the reports."""
    begun, noted, given = (folder / "checkpoint.safetensors").exists(), Path(f"{folder}.txt"), " ".join(arguments)
    if begun and noted.read_text() != given:
        raise SystemExit(f"{folder}: was begun with other arguments, see {noted}; move the folder away")
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(given)
    options = ["--resume", str(folder)] if begun else [*arguments, "--out", str(folder)]
    command = [sys.executable, "-m", "mlx_gpt", "train", "--json", *options]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
