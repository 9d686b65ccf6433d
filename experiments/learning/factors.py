"""Compares what single changes of training are worth, at half a million tokens of tiny Shakespeare.

    python experiments/learning/factors.py [GROUP ...]

The groups are the keys of GROUPS. Each run trains llama-s on updates of 4 sequences of 128 tokens, with one change,
except that `shape` changes the network and keeps about its number of parameters. A run takes two to six minutes on one
core. The rates of AdamW and Lion are the best of several on seed 0 (`rates`).
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from table import SHORT, chosen, measure, settings, write_text

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.data.corpus import open_corpus

BASE = SHORT | {"train.batch_size": 4, "train.sample_every": 0}
UPDATES = 976
OUTPUTS = ("attn.wo.weight", "mlp.fc2.weight")  # matrices that write to the residual stream
RATES = {"adamw": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), "lion": (1e-4, 2e-4, 4e-4)}
Variants = dict[str, list[str]]


def changed(changes: dict, *more: str, corpus: str = "shakespeare") -> list[str]:
    """Returns the arguments of a run with changes of BASE, and further arguments."""
    return ["--corpus", corpus, *settings(BASE | changes), *more]


def rates(folder: Path) -> Variants:
    return {
        f"{name}, rate {rate:g}": changed({"optimizer.name": name, "optimizer.learning_rate": rate})
        for name, each in RATES.items()
        for rate in each
    }


def optimizers(folder: Path) -> Variants:
    jordan = {"optimizer.newton_schulz": "jordan"}
    changes = {
        "muon": jordan,
        "normuon": {},
        "normuon, jordan": jordan,
        "adamw": {"optimizer.learning_rate": 5e-4},
        "lion": {"optimizer.learning_rate": 2e-4},
    }
    return {name: changed({"optimizer.name": name.partition(",")[0]} | more) for name, more in changes.items()}


def averages(folder: Path) -> Variants:
    """Returns variants with an average of the weights, with the decay of the rate and without."""
    average = {"optimizer.ema_decay": 0.98}
    changes = {"ema_decay 0.98": average, "no decay, ema_decay 0.98": average | {"optimizer.decay_start": 1}}
    return {name: changed(change) for name, change in changes.items()}


def values(key: str, *each: float) -> Callable[[Path], Variants]:
    """Returns the group with other values of a setting of the optimizer."""
    return lambda folder: {f"{key} {value:g}": changed({f"optimizer.{key}": value}) for value in each}


def shapes(folder: Path) -> Variants:
    """Returns networks of about 1.8M parameters, from two wide layers to twelve narrow ones."""
    found = {}
    for layers, width in ((2, 320), (6, 192), (12, 128)):
        shape = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "n_kv_head": 1, "ffn_dim": 2 * width}
        found[f"{layers} x {width}"] = changed({f"model.{key}": value for key, value in shape.items()})
    return found


def passes(folder: Path) -> Variants:
    """Returns variants that read as many tokens of less text. The validation split is the same text."""
    [text] = open_corpus(("shakespeare",)).documents
    border, found = round(0.9 * len(text)), {}
    train = text[:border]
    parts = {f"{part:g} of the text": spread(train, part) for part in (0.25, 0.1)}
    for name, part in (parts | {"first 0.25 of the text": train[: border // 4]}).items():
        path = folder / f"{name}.txt"
        share = write_text(path, part, text[border:])
        found[name] = changed({"data.val_fraction": share}, corpus=str(path))
    return found


def spread(text: str, part: float) -> str:
    """Returns a part of a text: the beginning of each of 50 equal pieces."""
    size = -(-len(text) // 50)
    return "".join(text[i : i + round(part * size)] for i in range(0, len(text), size))


def initials(folder: Path) -> Variants:
    """Returns variants with scaled initial weights. All seeds begin with the same ones."""
    scales = {"as they are": (1, 1), "outputs zero": (0, 1), "half as large": (0.5, 0.5)}
    return {
        f"initial weights {name}": changed({}, "--fine-tune", str(initial(folder / f"{name}.safetensors", *scale)))
        for name, scale in scales.items()
    }


def initial(path: Path, of_outputs: float, of_others: float) -> Path:
    """Writes the initial weights of seed 0, with those of the blocks' matrices scaled, and returns the path."""
    start = mlx_gpt.train("llama-s", "shakespeare", settings=BASE | {"train.seed": 0}, out=path.with_suffix(""))
    with contextlib.closing(start) as session:
        weights, header = session.run.model.weights(), session.run.header
    for name, w in weights.items():
        if name.startswith("layers.") and w.ndim == 2:
            weights[name] = w * (of_outputs if name.endswith(OUTPUTS) else of_others)
    store.save(
        path, Checkpoint(header=header, weights={name: np.array(w) for name, w in weights.items()}, optimizer={})
    )
    return path


# Name of a group -> a function that returns the arguments of its variants, which may use files in a folder.
GROUPS = {
    "rates": rates,
    "optimizer": optimizers,
    "average": averages,
    "decay": values("decay_start", 0.4, 1),
    "weight decay": values("weight_decay", 0, 0.3),
    "shape": shapes,
    "passes": passes,
    "initial": initials,
}
with tempfile.TemporaryDirectory() as made:
    for group in chosen(sys.argv[1:], GROUPS):
        seeds = [0] if group == "rates" else [1, 2, 3]
        measure("factors", GROUPS[group](Path(made)), seeds, ["--preset", "llama-s", "--iters", str(UPDATES)])
