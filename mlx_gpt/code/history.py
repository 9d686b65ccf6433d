"""eval-code.jsonl: the results of the checkpoints of a run, one JSON object on each line."""

import json
import os
from pathlib import Path
from typing import Any

from mlx_gpt.files import convert_os_errors
from mlx_gpt.parse import parse_json
from mlx_gpt.watch.metrics import read_metrics

NAME = "eval-code.jsonl"


def append(folder: Path, summary: dict[str, Any]) -> None:
    """Appends the summary of a report to the file of a run folder.

    Raises:
        UserError, OutOfRoom: The file cannot be written.
    """
    path = folder / NAME
    line = json.dumps(summary, allow_nan=False, default=str).encode() + b"\n"
    with convert_os_errors(path), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # A process that was killed while it wrote leaves a line without an end.
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def comparable(folder: Path, summary: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Returns the results of a run folder that have the settings of `summary`, ordered by step, and how many others.

    Of several results of one step, the last one counts. Lines that are not results are skipped.

    Raises:
        BadFile: The file cannot be read.
    """
    lines = [line for line in read_metrics(folder / NAME) if isinstance(line.get("totals"), dict) and "step" in line]
    settings = parse_json(json.dumps(summary["settings"]), NAME)  # lists instead of tuples
    same = {line["step"]: line for line in lines if line.get("settings") == settings}
    return [same[step] for step in sorted(same)], sum(line.get("settings") != settings for line in lines)
