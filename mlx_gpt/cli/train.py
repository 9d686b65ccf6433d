"""`mlxgpt train`: trains a model, or resumes a run."""

import sys
from contextlib import nullcontext
from pathlib import Path

import click
from click.core import ParameterSource

from mlx_gpt import distributed, run
from mlx_gpt.cli.beside import dashboard_beside
from mlx_gpt.cli.follow import follow
from mlx_gpt.cli.options import (
    alert_option,
    corpus_option,
    count_option,
    folder_option,
    heads_option,
    json_option,
    log_option,
    note,
    preset_option,
    set_option,
    settings_from,
    vocab_option,
    watch_option,
)
from mlx_gpt.cli.outputs import Channels
from mlx_gpt.cli.plan import print_plan
from mlx_gpt.cli.watch import require_dashboard
from mlx_gpt.errors import UserError
from mlx_gpt.run.request import NEWEST

OWN_TEXT = "train.txt"  # the corpus if no other is named and it exists in the current folder, as in randyGPT


@click.command()
@click.argument("updates", metavar="[ITERS]", required=False)
@preset_option
@click.option("--recipe", metavar="NAME", help="Training settings: default, randygpt, randygpt-0.9.5, or a TOML file.")
@corpus_option
@click.option(
    "--bpe",
    is_flag=False,
    flag_value="2000",
    metavar="[N]",
    help="Train a vocabulary of N ids by merging pairs of characters; N is 2000 by default.",
)
@click.option(
    "--byte-level", is_flag=True, help="With --bpe: merge bytes, as GPT-2 does, so that any text can be encoded."
)
@vocab_option
@click.option(
    "--out",
    metavar="DIR",
    callback=folder_option,
    help="Run folder.  [default: runs/PRESET-CORPUS, with a number added if it exists]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value=NEWEST,
    metavar="[FILE|DIR]",
    help="Run folder to continue, or its checkpoint.safetensors. Another checkpoint or a .bin file is continued in a "
    "new folder.  [without a value: the newest run]",
)
@click.option(
    "--fine-tune",
    type=click.Path(path_type=Path),
    help="Start a new run with the weights and the tokenizer of a checkpoint.",
)
@click.option("--iters", type=int, help="Total number of updates, counted from the run's start.")
@click.option(
    "--tokens",
    metavar="N",
    callback=count_option,
    help="Length of the run in tokens, such as 500_000, 5e5 or 0.5M. In a new run, batch, dropout, decay and "
    "evaluations follow from it; with --fine-tune, only the length.",
)
@click.option(
    "--minutes",
    type=float,
    help="Time limit in minutes; 0: none. In a new run without --iters and --fine-tune, the same "
    "settings follow from it, or from --tokens if that is shorter.",
)
@click.option("--batch", type=int, help="Sequences per micro-batch.")
@click.option("--accum", type=int, help="Micro-batches per update.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--min-lr", type=float, help="Final learning rate.")
@click.option("--dtype", help="Compute dtype: float32, bfloat16 or float16.")
@heads_option
@click.option("--seed", type=int, help="Random seed of initial weights, batches and dropout.")
@click.option("--eval-every", type=int, help="Updates between evaluations.")
@click.option("--sample-every", type=int, help="Updates between text samples; 0: none, -1: at each evaluation.")
@set_option
@log_option
@alert_option
@click.option(
    "--plan",
    is_flag=True,
    help="Time a few steps, print size, memory, tokens, FLOPs, ETA and for some runs the loss, and stop.",
)
@watch_option
@click.option(
    "--join",
    "address",
    metavar="HOST:PORT:TOKEN",
    help="Wait until the run at this address takes this process, which gets all settings from there.",
)
@json_option
def train_command(
    updates, preset, recipe, out, resume, fine_tune, sets, logs, alert, plan, watched, address, as_json, **flags
):
    """Train a model; by default model-l on Python's help topics.

    ITERS is the total number of updates, the same as --iters. If no corpus is named, ./train.txt is the corpus if it
    exists.

    \b
    mlxgpt train 1000
    mlxgpt train --preset model-l --corpus shakespeare
    mlxgpt train --preset model-s --corpus notes/ --minutes 10
    mlxgpt train --bpe 2000 --corpus shakespeare:2 --corpus 'books/*.txt'
    mlxgpt train --resume --iters 4000

    Ctrl-C ends the run after the current update and saves it. A second Ctrl-C ends it at once.
    """
    if address is not None and not distributed.Place.is_given():
        _join(address)
    require_watchable(watched, plan)
    channels = Channels(logs=logs, alert=alert)
    request = request_of(updates, preset, recipe, out, resume, fine_tune, sets, **flags)
    carry_out(request, plan, as_json, channels, watched)


def require_watchable(watched: bool, plan: bool) -> None:
    """Raises UserError if --watch was given, and nothing could be shown, or the dashboard is not installed."""
    if watched and plan:
        raise UserError("--plan makes no update that --watch could show; give one of them")
    if watched:
        require_dashboard()


def _join(address: str) -> None:
    """Waits until a run takes this process. Raises GroupChanged then, which starts the command again as a rank."""
    context = click.get_current_context()
    for given in context.command.params:
        if given.name != "address" and context.get_parameter_source(given.name) is not ParameterSource.DEFAULT:
            shown = "ITERS" if isinstance(given, click.Argument) else given.opts[0]
            raise UserError(f"--join takes all settings from the run, also {shown}; leave out all other options")
    raise distributed.wait_for_place(address, note)


def request_of(updates, preset, recipe, out, resume, fine_tune, sets, **flags) -> run.Request:
    """Converts the options of the command to a request. Raises UserError if they contradict each other."""
    flags["iters"] = _iters(updates, flags["iters"])
    return run.Request(
        preset=preset,
        recipe=recipe,
        settings=settings_from(sets, flags),
        out=out,
        resume=resume,
        fine_tune=fine_tune,
        default_corpus=(OWN_TEXT,) if Path(OWN_TEXT).is_file() else (),
    )


def carry_out(request: run.Request, plan: bool, as_json: bool, channels: Channels, watched: bool) -> None:
    """Trains as requested, and ends the process with the exit code; or prints the plan of the run.

    Args:
        request: The request.
        plan: Whether to print the plan only.
        as_json: Whether to print reports as JSON.
        channels: Where the reports go besides.
        watched: Whether to start a dashboard beside the run.
    """
    session = None if plan else run.Session(request, note)
    start = session.start if session else run.begin(request, note)
    if start.is_complete:
        tell = session.note if session else note
        if session:
            session.close()
        tell(f"{start.folder or request.resume}: {start.end()}")
    elif plan:
        run.folder_of(request, start)  # as the run would, refuses the folder of another run
        print_plan(run.plan(start, note), as_json)
    else:
        beside = dashboard_beside(session.folder, lambda line: session.note(line)) if watched else nullcontext()
        with beside:
            sys.exit(follow(session, as_json, channels))


def _iters(argument: str | None, option: int | None) -> int | None:
    """The number of updates that the argument ITERS or the option --iters gives, or None.

    Raises:
        UserError: Both are given, or the argument is not a whole number.
    """
    if argument is None:
        return option
    if option is not None:
        raise UserError(f"{argument} and --iters {option} both give the number of updates; give one of them")
    try:
        return int(argument)
    except ValueError:
        raise UserError(
            f"{argument!r} is not a number of updates; give a whole number, as in mlxgpt train 1000, and name a text "
            "with --corpus"
        ) from None
