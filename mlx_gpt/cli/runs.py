"""`mlxgpt runs`: lists runs, and deletes those that are no longer needed."""

import dataclasses
import sys
import time
from pathlib import Path

import click

from mlx_gpt.cli.options import echo_json, json_option, note
from mlx_gpt.cli.tables import print_table
from mlx_gpt.errors import UserError
from mlx_gpt.paths import RUNS
from mlx_gpt.run.cleaning import delete, plan_cleaning
from mlx_gpt.run.listing import RunFacts, list_runs

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
FOLDER = click.argument("folder", required=False, default=RUNS, type=click.Path(path_type=Path))


class DefaultGroup(click.Group):
    """A group whose command `list` is meant if no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else ["list", *args])


@click.group(cls=DefaultGroup)
def runs_command():
    """List runs, or delete those that are no longer needed.

    \b
    mlxgpt runs
    mlxgpt runs FOLDER --json
    mlxgpt runs clean --keep 5
    """


@runs_command.command("list")
@FOLDER
@json_option
def list_command(folder, as_json):
    """List the runs in FOLDER, runs/ by default, those that changed last first.

    The states: training (a process trains it), finished, stopped (by a signal), diverged, failed (by an error), killed
    (its process ended without a report), unknown (no report tells it).
    """
    found = list_runs(folder)
    if as_json:
        echo_json([dataclasses.asdict(run) for run in found])
        return
    if not found:
        note(f"{folder}: no runs there")
        return
    now = time.time()
    titles = ("run", "state", "step", "best loss", "tokens", "time", "size", "changed", "alerts")
    print_table([titles, *(_row(run, folder, now) for run in found)], left=(0, 1, len(titles) - 1))


@runs_command.command("clean")
@FOLDER
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Delete all but the N runs that changed last.")
@click.option("--older", type=click.FloatRange(0), metavar="DAYS", help="Delete runs unchanged for so many days.")
@click.option(
    "--checkpoints", is_flag=True, help="Delete what finished runs only need to be continued; best.safetensors stays."
)
@click.option("--yes", is_flag=True, help="Delete without a question.")
@json_option
def clean_command(folder, keep, older, checkpoints, yes, as_json):
    """Delete runs in FOLDER that have no checkpoint, and what the options name. Says first what that is.

    With --keep and --older, the runs are deleted that both name. A run that trains is never deleted. Files that no run
    writes are kept, with their folder.
    """
    deletions = list(plan_cleaning(list_runs(folder), time.time(), keep, older, checkpoints))
    if as_json:
        echo_json(
            [{"paths": d.paths, "reason": d.reason, "bytes": d.num_bytes, "run": d.run.folder} for d in deletions]
        )
    for deletion in deletions:
        run = deletion.run
        what = str(run.folder) if deletion.whole else ", ".join(map(str, deletion.paths))
        note(f"{what}: {deletion.reason} ({run.state}, step {run.step:,}, {_size(deletion.num_bytes)})")
    if not deletions:
        note(f"{folder}: nothing to delete")
        return
    total = _size(sum(deletion.num_bytes for deletion in deletions))
    if not yes and not sys.stdin.isatty():
        note(f"{total} would be freed; add --yes to delete it")
        return
    if not yes and not click.confirm(f"Delete this, {total}?", err=True):
        return
    for deletion in deletions:
        try:
            is_gone = delete(deletion)
            rest = "; its other files are kept" if deletion.whole and not is_gone else ""
            note(f"{deletion.run.folder}: deleted{'' if deletion.whole else ' what is not needed'}{rest}")
        except UserError as error:
            note(f"not deleted: {error}")


def _row(run: RunFacts, folder: Path, now: float) -> tuple[str, ...]:
    name = run.folder.relative_to(folder) if run.folder != folder else folder
    return (
        str(name),
        run.state,
        f"{run.step:,}" + (f"/{run.iters:,}" if run.iters else ""),
        "-" if run.best_loss is None else f"{run.best_loss:.4f}",
        f"{run.tokens:,}",
        _duration(run.seconds),
        _size(run.num_bytes),
        f"{_duration(max(now - run.changed, 0), units=1)} ago",
        ", ".join(run.alerts),
    )


def _duration(seconds: float, units: int = 2) -> str:
    """Formats seconds with the one or two largest units, as 2 h 5 min."""
    for (name, size), (smaller, part) in zip(UNITS, UNITS[1:], strict=False):
        if seconds >= size:
            rest = int(seconds % size // part)
            return f"{int(seconds // size)} {name}" + (f" {rest} {smaller}" if rest and units > 1 else "")
    return f"{int(seconds)} s"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
