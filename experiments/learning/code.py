"""Trains a small model on code, then with rewards, and measures what it writes before and after.

    python experiments/learning/code.py FOLDER [--minutes 60]

The base is llama-m with 2,000 byte pairs, trained on Python's standard library and generated programs. Each objective
then makes 60 updates with 64 texts each, from three seeds. Programs are rewarded if they compile and define what the
prompt asks for. `mlxgpt eval-code` measures 64 samples of each of its 16 prompts, on which nothing was trained, and
`mlxgpt eval` the loss on the validation text. The models stay in FOLDER, and finished rows in results/code.json are not
repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "code.json"
OBJECTIVES = ("grpo", "dr-grpo", "gspo", "maxrl", "rft")
CORPUS = ("stdlib", "code-patterns-python:4000")
SAMPLES = ("--language", "python", "--samples", "64", "--max-tokens", "128", "--temp", "1", "--top-k", "0")


def mlxgpt(*arguments: str) -> str:
    """Runs a command of mlxgpt and returns what it printed."""
    command = [sys.executable, "-m", "mlx_gpt", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def measured(folder: Path) -> dict:
    """Measures the last checkpoint of a run."""
    checkpoint = str(folder / "checkpoint.safetensors")
    report = json.loads(mlxgpt("eval-code", checkpoint, *SAMPLES, "--json"))
    totals, lengths = report["totals"], []
    for prompt in report["samples_by_prompt"]:
        lengths += [len(sample["text"]) for sample in prompt["samples"]]
    shares = {name: totals[name] for name in ("parses", "compiles", "defines", "valid")}
    loss = json.loads(mlxgpt("eval", checkpoint, "--json"))["loss"]
    distinct, length = totals["distinct"], sum(lengths) / len(lengths)
    return {**shares, "distinct": distinct, "mean_length": round(length, 1), "val_loss": round(loss, 4)}


def trained(folder: Path, command: list[str]) -> None:
    """Trains a run in a folder, or continues it there."""
    if (folder / "checkpoint.safetensors").exists():
        command = ["train", "--resume", str(folder)]
    else:
        command += ["--out", str(folder)]
    mlxgpt(*command)


def last_metrics(folder: Path) -> dict:
    """The metrics of the last update of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["report"] == "step"][-1]
    return {name: round(last[name], 4) for name in ("reward", "success", "distinct", "kl", "H", "length")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the models")
    parser.add_argument("--minutes", type=int, default=60, help="time of the base's training (default: 60)")
    chosen = parser.parse_args()
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else []
    corpus = [part for name in CORPUS for part in ("--corpus", name)]
    base = ["train", "--preset", "llama-m", *corpus, "--bpe", "2000", "--batch", "8", "--minutes", str(chosen.minutes)]
    jobs = [("base", 1, base)]
    for objective in OBJECTIVES:
        command = ["rl", str(chosen.folder / "base-1"), "--objective", objective, "--iters", "60"]
        jobs += [(objective, seed, [*command, "--seed", str(seed)]) for seed in (1, 2, 3)]
    for name, seed, command in jobs:
        if not any((row["name"], row["seed"]) == (name, seed) for row in rows):
            folder, start = chosen.folder / f"{name}-{seed}", time.perf_counter()
            trained(folder, command)
            row = {"name": name, "seed": seed, "seconds": round(time.perf_counter() - start)} | measured(folder)
            row |= {"last_update": last_metrics(folder)} if name != "base" else {}
            commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
            rows.append(row | {"commit": commit.stdout.strip(), "command": " ".join(command[:1] + command[2:])})
            RESULT.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
