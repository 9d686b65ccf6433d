"""Options that several commands share, and how they become a config."""

import json
from pathlib import Path

import click

from mlx_gpt.config.presets import names_of, parse_set
from mlx_gpt.config.schema import SHAPE_KEYS, UNTIL_TIME_IS_UP
from mlx_gpt.errors import UserError

# Short flags and the settings they stand for; every other setting is reached by --set.
FLAGS = {
    "iters": "train.iters",
    "minutes": "train.minutes",
    "batch": "train.batch_size",
    "accum": "train.grad_accum_steps",
    "seed": "train.seed",
    "dtype": "train.dtype",
    "eval_every": "train.eval_every",
    "sample_every": "train.sample_every",
    "heads": "model.n_head",
    "lr": "optimizer.learning_rate",
    "min_lr": "optimizer.min_learning_rate",
    "corpus": "data.corpus",
    "vocab": "data.vocab",
}

# What --resume stands for alone.
NEWEST = "newest"

set_option = click.option(
    "--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="Any setting, as model.n_head=4; repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
preset_option = click.option(
    "--preset", metavar="NAME|FILE", help=f"{', '.join(names_of('presets'))}, or a TOML file of your own."
)
heads_option = click.option("--heads", type=int, help="Attention heads; 64-wide ones have fused kernels on Metal.")
corpus_option = click.option(
    "--corpus",
    multiple=True,
    metavar="NAME|PATH",
    help="A named corpus, a file, folder or pattern of UTF-8 text; repeatable; NAME:2 is read twice as often.",
)
vocab_option = click.option("--vocab", metavar="FILE", help="A vocab.json or tokenizer.json to read text with.")


def overrides_of(sets: tuple[str, ...], flags: dict) -> dict:
    """Dotted settings from --set and from the flags that were given; one setting given twice is refused."""
    overrides = {}
    bpe, byte_level = flags.pop("bpe", None), flags.pop("byte_level", False)
    if byte_level and bpe is None:
        raise UserError("--byte-level says how --bpe merges; give --bpe [N] too")
    if bpe is not None and not bpe.isdigit():
        raise UserError(f"--bpe {bpe!r} is no number of ids; as --bpe 2000")
    if bpe is not None and flags.get("vocab"):
        raise UserError("--bpe trains a vocabulary, --vocab takes one; give one of them")
    given = [parse_set(text) for text in sets]
    if bpe is not None:
        given += [("data.tokenizer", "byte-bpe" if byte_level else "bpe"), parse_set(f"data.vocab_size={bpe}")]
    given += [(FLAGS[name], value) for name, value in flags.items() if value not in (None, ())]
    for key, value in given:
        if key in overrides:
            raise UserError(f"{key} is given twice, as {overrides[key]} and {value}; give it once")
        overrides[key] = value
    if overrides.get("train.minutes"):
        overrides.setdefault("train.iters", UNTIL_TIME_IS_UP)
    return overrides


def network_of(overrides: dict) -> dict:
    """What dotted settings say of the network, as {"n_head": 4}."""
    said = {k.removeprefix("model."): v for k, v in overrides.items() if k.startswith("model.")}
    return {k: v for k, v in said.items() if k != "dropout"}


def sizes_from(sets: tuple[str, ...]) -> dict[str, int]:
    """The shape said by --set, where nothing else can be set."""
    overrides = overrides_of(sets, {})
    for key in overrides.keys() - {f"model.{k}" for k in SHAPE_KEYS}:
        raise UserError(f"--set {key} does nothing here; only model.{', model.'.join(SHAPE_KEYS)} do")
    return network_of(overrides)


def folder_option(context, parameter, value: str | None) -> Path | None:
    """A folder that is named; an empty name is an unset shell variable, not the folder one stands in."""
    if value == "":
        raise UserError(f"{parameter.opts[0]} is empty; name a folder")
    return Path(value) if value else None


def echo_json(data) -> None:
    click.echo(json.dumps(data, allow_nan=False, default=str))


def note(text: str) -> None:
    """Says something on stderr, apart from a command's result."""
    click.echo(text, err=True)
