"""Tables in pipes and on terminals."""

import re

from mlx_gpt.cli.tables import print_table

ROWS = [("run", "step", "alerts"), ("[red]a[/red] " + "long" * 60, "1,000", ""), ("b", "2", "dead, disk")]


def test_a_pipe_gets_one_plain_line_for_each_row(capsys):
    print_table(ROWS, left=(0, 2))
    lines = capsys.readouterr().out.splitlines()
    assert [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines] == [
        [cell for cell in row if cell] for row in ROWS
    ]
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)
    assert lines[1].index("1,000") + 5 == lines[2].index("2") + 1


def test_a_terminal_gets_the_whole_text_in_its_width(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    print_table(ROWS, left=(0, 2))
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 60 for line in lines)
    width = lines[0].index("step") - 3
    assert "long" * 60 in "".join(line[:width].strip() for line in lines)
