"""`mlxgpt compare`: compares settings, losses and speed of runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from mlx_gpt.cli.options import echo_json, json_option, note
from mlx_gpt.cli.tables import print_table
from mlx_gpt.config.renames import old_values
from mlx_gpt.watch.compare import NotEvaluated, Record, differences, draw, read_record, table, thresholds


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--at",
    "levels",
    type=float,
    multiple=True,
    help="Show the tokens and the seconds each run needed to reach this loss; repeatable.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the loss curves to a .png, .svg or .pdf file."
)
@json_option
def compare_command(runs, levels, plot, as_json):
    """Compare runs: settings that differ, losses, tokens and seconds to reach a loss, and speed.

    \b
    mlxgpt compare runs/model-l-shakespeare runs/model-l-shakespeare-2
    mlxgpt compare runs/* --at 2.0 --plot curves.svg

    A RUN is a run folder, or a checkpoint in a run folder. Of several runs, those without an evaluation are left out.
    """
    records = _records(runs)
    levels = levels or thresholds(records)
    if plot:
        draw(plot, records)
    if as_json:
        facts = [{"run": record.name, **record.facts(), **_reached(record, levels)} for record in records]
        # Settings are also listed under their old names, for scripts of earlier versions.
        differing = differences([replace(r, settings=r.settings | old_values(r.settings)) for r in records])
        echo_json({"differences": differing, "runs": facts})
        return
    rows = [("", [record.name for record in records]), *table(records, levels)]
    print_table([(label, *cells) for label, cells in rows])
    if plot:
        click.echo(f"curves: {plot}", err=True)


def _reached(record: Record, levels: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """The tokens and the seconds to each loss."""
    return {
        "tokens_to": {f"{level:g}": record.tokens_to(level) for level in levels},
        "seconds_to": {f"{level:g}": record.seconds_to(level) for level in levels},
    }


def _records(runs: tuple[Path, ...]) -> list[Record]:
    """Reads the records of runs. If there are several, those without an evaluation are left out with a note.

    Raises:
        NotEvaluated: None of them has an evaluation.
    """
    records, failures = [], []
    for path in runs:
        try:
            records.append(read_record(path))
        except NotEvaluated as error:
            failures.append(error)
    if not records:
        raise failures[0]
    for error in failures:
        note(f"{error}; left out")
    return records
