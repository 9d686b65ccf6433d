"""Trains llama-m and ternary-m on 5 million tokens of tiny Shakespeare.

    python experiments/learning/ternary_long.py FOLDER [float] [norms] [ternary]

The rate and its decay are those with the lowest loss in results/ternary_tuning.json, for float32 and for ternary
weights. A run takes about an hour on one core. The runs stay in FOLDER. One that was interrupted is resumed, and one
whose row is in results/ternary_long.json is not repeated.
"""

import json
import subprocess
import sys
from pathlib import Path

from table import RESULTS

STEPS, BATCH, SEED = 2441, 8, 1  # 5.0M tokens, in sequences of 256
VARIANTS = {
    "float": ["--preset", "llama-m"],
    "norms": ["--preset", "ternary-m", "--set", "model.ternary_norm=true"],
    "ternary": ["--preset", "ternary-m"],
}
SETTINGS = {
    "model.dropout": 0.1,
    "optimizer.name": "muon",
    "optimizer.schedule": "wsd",
    "optimizer.learning_rate": 3e-3,
    "optimizer.decay_start": 0.2,
    "optimizer.min_learning_rate": 0,
    "optimizer.ema_decay": 0,
    "train.save_minutes": 2,
}


def arguments(name: str) -> list[str]:
    """The arguments of `mlxgpt train` for one of the networks."""
    found = [*VARIANTS[name], "--corpus", "shakespeare", "--batch", str(BATCH), "--iters", str(STEPS)]
    found += ["--eval-every", "610", "--seed", str(SEED)]
    return found + [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


def row_of(name: str, run: Path) -> dict:
    """The row of a finished run."""
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [round(line["val_loss"], 4) for line in reports if line["report"] == "eval"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "name": name,
        "seed": SEED,
        "val_loss": losses[-1],
        "val_losses": losses,
        "tokens": reports[-1]["tokens"],
        "seconds": round(reports[-1]["elapsed"]),
        "commit": commit.stdout.strip(),
        "arguments": " ".join(arguments(name)),
    }


def main(folder: Path, names: list[str]) -> None:
    path = RESULTS / "ternary_long.json"
    for name in names or VARIANTS:
        rows = json.loads(path.read_text()) if path.exists() else []
        if any(row["name"] == name for row in rows):
            continue
        run = folder / name
        begun = (run / "checkpoint.safetensors").exists()
        options = ["--resume", str(run)] if begun else [*arguments(name), "--out", str(run)]
        command = [sys.executable, "-m", "mlx_gpt", "train", "--json", *options]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        rows = json.loads(path.read_text()) if path.exists() else []
        rows.append(row_of(name, run))
        path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
        print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
