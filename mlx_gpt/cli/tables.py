"""Prints tables on the terminal, and into pipes as plain text."""

import sys
from collections.abc import Sequence

UNLIMITED = 1 << 20  # columns of a file or a pipe


def print_table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Prints a table on stdout.

    On a terminal, cells that do not fit are continued on the next line. In a file or a pipe, each row is one line,
    and its cells are separated by two spaces or more.

    Args:
        rows: The rows, each with one text for each column. The first one has the titles.
        left: The columns that begin at the left. The others end at the right.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    sides = ("left" if i in left else "right" for i in range(len(rows[0])))
    columns = [Column(Text(name), justify=side, overflow="fold") for name, side in zip(rows[0], sides, strict=True)]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else UNLIMITED)
    with console.capture() as captured:
        console.print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
