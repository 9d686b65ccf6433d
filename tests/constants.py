"""The folder of the checkout, the settings of a small model, and the names of all commands."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY_SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64}
TINY = {f"model.{k}": v for k, v in TINY_SHAPE.items()}
# All commands of `mlxgpt`.
COMMANDS = ["train", "generate", "eval", "convert", "inspect", "corpus", "corpus list", "doctor", "bench", "compare"]
COMMANDS += ["serve", "export", "push", "eval-code", "runs", "runs list", "runs clean"]
COMMANDS += [
    "tokenizer",
    "corpus stats",
    "corpus import",
    *(f"tokenizer {name}" for name in ("train", "encode", "decode", "inspect", "convert")),
]
# Arguments of `mlxgpt train` for a run that takes about a second.
SMALL = [f"--set={k}={v}" for k, v in TINY.items()] + ["--batch=4", "--iters=12", "--eval-every=6"]
SMALL += ["--sample-every=0", "--set=data.val_fraction=0.002"]
