"""Options that several commands share, and their conversion to settings."""

import json
from decimal import Decimal
from pathlib import Path

import click

from mlx_gpt.config.presets import names_of, parse_set
from mlx_gpt.config.schema import SHAPE_KEYS
from mlx_gpt.errors import UserError
from mlx_gpt.run.request import network_of, settings_of

# Option -> the setting that it changes. Every other setting can be changed with --set.
FLAGS = {
    "iters": "train.iters",
    "tokens": "train.tokens",
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
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}  # letters that may follow a number
MAX_COUNT = 10**15

set_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change any setting, such as model.n_head=4; repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
preset_option = click.option(
    "--preset", metavar="NAME|FILE", help=f"{', '.join(names_of('presets'))}, or a TOML file of your own."
)
heads_option = click.option(
    "--heads", type=int, help="Number of attention heads; heads of width 64 have fused kernels on Metal."
)
corpus_option = click.option(
    "--corpus",
    multiple=True,
    metavar="NAME|PATH",
    help="A named corpus, or a file, folder or glob pattern of UTF-8 text; repeatable. NAME:2 is read twice per epoch.",
)
log_option = click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="NAME",
    help="Also log the reports to tensorboard, wandb or trackio, each an extra of mlxgpt; repeatable.",
)
alert_option = click.option(
    "--alert", metavar="CMD", help="Run a command for each alert, with the alert as JSON on its standard input."
)
watch_option = click.option(
    "--watch", "watched", is_flag=True, help="Show the run on a web page too, as mlxgpt watch does."
)
vocab_option = click.option("--vocab", metavar="FILE", help="A vocab.json or tokenizer.json that encodes the text.")


def settings_from(sets: tuple[str, ...], flags: dict) -> dict:
    """Collects the settings that --set and other options give.

    Args:
        sets: The values of --set.
        flags: The values of other options: the keys of FLAGS, "bpe" and "byte_level". None or () means that an option
            was not given. "bpe" and "byte_level" are removed from the dictionary.

    Returns:
        The settings by dotted name, as {"train.iters": 500}.

    Raises:
        UserError: A setting is unknown or given twice, or options contradict each other.
    """
    bpe, byte_level = flags.pop("bpe", None), flags.pop("byte_level", False)
    if byte_level and bpe is None:
        raise UserError("--byte-level changes what --bpe merges and has no effect alone; add --bpe [N]")
    if bpe is not None and not bpe.isdigit():
        raise UserError(f"--bpe {bpe!r} is not a number of ids; give a whole number, as in --bpe 2000")
    if bpe is not None and flags.get("vocab"):
        raise UserError("--bpe trains a vocabulary and --vocab reads one; give one of them")
    given = [parse_set(text) for text in sets]
    if bpe is not None:
        given += [("data.tokenizer", "byte-bpe" if byte_level else "bpe"), parse_set(f"data.vocab_size={bpe}")]
    given += [(FLAGS[name], value) for name, value in flags.items() if value not in (None, ())]
    return settings_of(given)


def sizes_from(sets: tuple[str, ...]) -> dict[str, int]:
    """Returns the sizes of the network that --set gives, as {"n_head": 4}.

    Raises UserError for a setting that is not in SHAPE_KEYS.
    """
    settings = settings_from(sets, {})
    for key in settings.keys() - {f"model.{k}" for k in SHAPE_KEYS}:
        raise UserError(
            f"--set {key} has no effect in this command; leave it out, or set one of "
            f"model.{', model.'.join(SHAPE_KEYS)}"
        )
    return network_of(settings)


def folder_option(context, parameter, value: str | None) -> Path | None:
    """A click callback that converts the name of a folder to a Path, and no name to None.

    Raises UserError for an empty name, which an unset shell variable gives.
    """
    if value == "":
        raise UserError(f"{parameter.opts[0]} is empty; name a folder")
    return Path(value) if value else None


def count_option(context, parameter, value: str | None) -> int | None:
    """A click callback that converts a number such as 500000, 500_000, 5e5 or 0.5M to an integer.

    Raises UserError if the text is not a whole number from 1 to MAX_COUNT.
    """
    if value is None:
        return None
    factor = UNITS.get(value[-1:].upper())
    try:
        number = Decimal(value[:-1] if factor else value) * (factor or 1)
        if 1 <= number <= MAX_COUNT and number == int(number):
            return int(number)
    except ArithmeticError:  # the text is not a number, or is NaN
        pass
    raise UserError(
        f"{parameter.opts[0]} {value!r} is not allowed; give a whole number from 1 to {MAX_COUNT}, such as 500000, 5e5 "
        "or 0.5M"
    )


def echo_json(data) -> None:
    """Prints one line of JSON on stdout. Values that JSON does not have, such as paths, are printed as str(value).

    Raises ValueError for NaN and infinity.
    """
    click.echo(json.dumps(data, allow_nan=False, default=str))


def note(text: str) -> None:
    """Prints a line on stderr, so that stdout contains only the result of a command."""
    click.echo(text, err=True)
