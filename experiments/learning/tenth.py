"""Chooses the settings of long runs with a tenth of their parameters, of their text, and of their tokens.

    python experiments/learning/tenth.py [GROUP ...]

The groups are the keys of GROUPS. A network of Llama's shape with 0.45M parameters reads a tenth of tiny Shakespeare
about as often as llama-m reads the whole text in long_records.py, in about as many updates. The validation loss is
measured on 102,400 characters of the rest. The runs of the group `hundredth` have a hundredth of the text. A run takes
half a minute to 19 minutes on one core. The runs of the group `larger` have four tenths of the parameters, of the text,
and of the tokens, and take 20 minutes.
"""

import sys
import tempfile
from pathlib import Path

from table import chosen, measure, settings, write_text

from mlx_gpt.data.corpus import open_corpus

COMMON = ["--preset", "llama-s"]
COMMON += settings({"train.save_minutes": 0, "train.sample_every": 0, "train.eval_windows": 400})
COMMON += settings({"optimizer.ema_decay": 0})
BASE = {"model.dropout": 0.15, "optimizer.decay_start": 0.2, "optimizer.newton_schulz": "jordan"}
SHAPE = {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_kv_head": 1, "ffn_dim": 448}
TENTH = BASE | {f"model.{key}": size for key, size in SHAPE.items()}
TENTH |= {"data.val_fraction": 0.9, "train.eval_every": 100_000}
LARGER = BASE | {"data.val_fraction": 0.6, "train.eval_every": 625}  # with the shape of llama-s


def arguments(tokens: int, changes: dict, batch: int = 1, base: dict = TENTH, corpus: str = "shakespeare") -> list[str]:
    """Returns the arguments for a run of this many tokens, with changes of `base`."""
    return ["--corpus", corpus, "--tokens", str(tokens), "--batch", str(batch), *settings(base | changes)]


def lengths(folder: Path) -> dict[str, list[str]]:
    return {
        f"{tokens:,} tokens, dropout {rate:g}": arguments(tokens, {"model.dropout": rate})
        for tokens in (500_000, 1_000_000, 2_000_000, 4_000_000)
        for rate in (0.0, 0.05, 0.1, 0.2, 0.3)
    }


def single(folder: Path) -> dict[str, list[str]]:
    """Returns single changes of a run of 600,000 tokens."""
    changes = {
        "base": {},
        "muon": {"optimizer.name": "muon"},
        "polar": {"optimizer.newton_schulz": "polar"},
        "context 512": {"model.block_size": 512},
        "weight decay 0.03": {"optimizer.weight_decay": 0.03},
        "weight decay 0.3": {"optimizer.weight_decay": 0.3},
        "rate x0.5": {"optimizer.learning_rate": 1.5e-3},
        "rate x2": {"optimizer.learning_rate": 6e-3},
        "decay from 0.05": {"optimizer.decay_start": 0.05},
        "dropout 0.05": {"model.dropout": 0.05},
        "dropout 0.1": {"model.dropout": 0.1},
    }
    found = {name: arguments(600_000, change) for name, change in changes.items()}
    found["2 sequences"] = arguments(600_000, {}, 2)
    short = {"model.block_size": 128}
    return found | {f"context 128, {size} sequences": arguments(600_000, short, size) for size in (1, 2)}


def hundredth(folder: Path) -> dict[str, list[str]]:
    """Returns runs on a hundredth of the text, by dropout. Their validation split is the end of the text."""
    [text] = open_corpus(("shakespeare",)).documents
    path = folder / "hundredth.txt"
    split = {"data.val_fraction": write_text(path, text[: len(text) // 100], text[-50_000:])}
    networks = {"": TENTH | split, "llama-s, ": BASE | split | {"train.eval_every": 100_000}}
    return {
        f"{network}a hundredth, {tokens:,} tokens, dropout {rate:g}": arguments(
            tokens, {"model.dropout": rate}, base=base, corpus=str(path)
        )
        for network, base in networks.items()
        for tokens in (100_000, 300_000)
        for rate in (0.0, 0.1, 0.2, 0.3)
    }


def larger(folder: Path) -> dict[str, list[str]]:
    """Returns runs of llama-s on four tenths of the text, by dropout."""
    return {
        f"llama-s, 2,400,000 tokens, dropout {rate:g}": arguments(2_400_000, {"model.dropout": rate}, 3, LARGER)
        for rate in (0.0, 0.05, 0.1, 0.2)
    }


GROUPS = {"single": single, "lengths": lengths, "hundredth": hundredth, "larger": larger}
with tempfile.TemporaryDirectory() as made:
    for group in chosen(sys.argv[1:], GROUPS):
        measure("tenth", GROUPS[group](Path(made)), seeds=[0, 41, 42], common=COMMON)
