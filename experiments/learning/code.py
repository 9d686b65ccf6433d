"""Trains a small model on code, then with rewards, and measures what it writes before and after.

    python experiments/learning/code.py FOLDER

The base is llama-s with 2,000 byte pairs, trained with 6.1 million tokens of Python's standard library and of generated
programs. Each objective then makes 20 updates with 64 texts each, from three seeds, with the same settings. Programs
are rewarded if they compile and define what the prompt asks for. `mlxgpt eval-code` measures 64 samples of each of its
16 prompts, on which nothing was trained. `val_loss` is the loss on the whole validation text after the training, whose
time is `seconds`. The models stay in FOLDER, and finished rows in results/code.json are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "code.json"
CORPUS = ("stdlib", "code-patterns-python:4000")
BASE = ("--bpe", "2000", "--batch", "8", "--iters", "3000", "--eval-every", "1000")
RL = ("--lr", "2e-4", "--kl", "0.2")
OBJECTIVES = ("grpo", "dr-grpo", "gspo", "maxrl", "rft")
VARIANTS = {name: ("--objective", name, "--iters", "20") for name in OBJECTIVES}
VARIANTS["grpo, 10 updates"] = ("--objective", "grpo", "--iters", "10")
METRICS = ("loss", "reward", "success", "distinct", "kl", "H", "length")
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
        lengths += [len(sample["program"]) - len(prompt["prompt"]) for sample in prompt["samples"]]
    shares = {name: totals[name] for name in ("parses", "compiles", "defines", "valid")}
    loss, length = last_report(folder, "eval")["val_loss"], sum(lengths) / len(lengths)
    return {**shares, "distinct": totals["distinct"], "mean_length": round(length, 1), "val_loss": round(loss, 4)}


def trained(folder: Path, command: list[str]) -> None:
    """Trains a run in a folder, or continues it there."""
    is_begun = (folder / "checkpoint.safetensors").exists()
    mlxgpt(*(["train", "--resume", str(folder)] if is_begun else [*command, "--out", str(folder)]))


def last_report(folder: Path, kind: str) -> dict:
    """The last report of a kind in a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["report"] == kind][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the models")
    chosen = parser.parse_args()
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else []
    corpus = [part for name in CORPUS for part in ("--corpus", name)]
    base = ["train", "--preset", "llama-s", *corpus, *BASE]
    jobs = [("base", 1, base)]
    for name, arguments in VARIANTS.items():
        command = ["rl", str(chosen.folder / "base-1"), *RL, *arguments]
        jobs += [(name, seed, [*command, "--seed", str(seed)]) for seed in (1, 2, 3)]
    for name, seed, command in jobs:
        if not any((row["name"], row["seed"]) == (name, seed) for row in rows):
            folder = chosen.folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            trained(folder, command)
            last = last_report(folder, "step")
            row = {"name": name, "seed": seed, "seconds": round(last["elapsed"])} | measured(folder)
            row |= {"last_update": {name: round(last[name], 4) for name in METRICS if name in last}}
            commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
            rows.append(
                row | {"commit": commit.stdout.strip(), "command": " ".join(command).replace(f"{chosen.folder}/", "")}
            )
            RESULT.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
