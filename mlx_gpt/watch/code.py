"""Shows the result of an evaluation of code as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

SHARES = ("parses", "compiles", "defines", "valid", "passes", "ended")  # fields of the totals
MEANS = ("lines", "functions", "complexity")
# Column of the prompts -> field of a sample.
COUNTS = {"parses": "parses", "compiles": "compiles", "valid": "valid", "passes": "passed"}


def show_prompts(console: Console, prompts: Sequence[Mapping[str, Any]]) -> None:
    """Prints a row for each prompt: how many samples parse, compile, are valid and pass, and the most common error."""
    table = _table(f"of {prompts[0]['n_samples']} samples", ["prompt", *COUNTS])
    table.add_column("error")
    for prompt in prompts:
        counts = [_count([sample[name] for sample in prompt["samples"]]) for name in COUNTS.values()]
        error = Text(printable(next(iter(prompt["common_errors"]), "")), no_wrap=True, overflow="ellipsis")
        table.add_row(*map(Text, (prompt["task_id"], *counts)), error)
    console.print(table)


def show_totals(console: Console, totals: Mapping[str, dict[str, Any]]) -> None:
    """Prints one column for each model.

    Args:
        console: Where to print.
        totals: The totals of each model by its name.
    """
    table = _table("percent of the samples, with 95 % interval", ["", *totals])
    for field in SHARES:
        table.add_row(field, *(share_text(found[field]) for found in totals.values()))
    for k in next(iter(totals.values()))["pass_at_k"]:
        table.add_row(f"pass@{k}", *(_pass_text(found["pass_at_k"][k]) for found in totals.values()))
    table.add_row("distinct", *(f"{100 * found['distinct']:.1f}" for found in totals.values()))
    for field in MEANS:
        table.add_row(f"mean {field}", *(f"{found[f'avg_{field}']:.1f}" for found in totals.values()))
    console.print(table)


def show_history(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    """Prints one row for each evaluated checkpoint of a run."""
    fields = ("compiles", "valid", "passes")
    table = _table("checkpoints of the run with the same settings, percent of the samples", ["step", *fields])
    for result in results:
        table.add_row(f"{result['step']:,}", *(share_text(result["totals"].get(field)) for field in fields))
    console.print(table)


def share_text(share: Mapping[str, Any] | None) -> str:
    """Returns a share in percent and its interval, as "12.5 (4.0-33.0)", or "-" if it is not known."""
    if not share or share.get("share") is None:
        return "-"
    return f"{100 * share['share']:.1f} ({100 * share['low']:.1f}-{100 * share['high']:.1f})"


def printable(text: str) -> str:
    """Returns a text without characters that control a terminal: they are escaped as in Python. Newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text.expandtabs(4))


def _table(title: str, names: Sequence[str]) -> Table:
    columns = (Column(name, no_wrap=True) for name in names)
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _pass_text(found: Mapping[str, Any] | None) -> str:
    return share_text(found | {"share": found["value"]}) if found else "-"


def _count(values: Sequence[bool | None]) -> str:
    return str(sum(map(bool, values))) if any(value is not None for value in values) else "-"
