"""metrics.jsonl: one line per report of a run, each a JSON object.

The field `report` names the kind of the report, see train.reports.kind(). The other fields are
those of the report's class. The fields loss, ppl and bits_per_byte of an evaluation are renamed to val_loss, val_ppl
and val_bits_per_byte. Files of mlxgpt 0.1 have lines for updates and evaluations only, without the field `report`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gpt.errors import BadFile
from mlx_gpt.files import convert_os_errors, write_atomic
from mlx_gpt.parse import parse_json, reading
from mlx_gpt.train.reports import EvalReport, Report, kind, to_dict

MAX_LINE = 1 << 20  # a longer line is not one that MetricsFile has written, in bytes


class MetricsFile:
    """Appends reports to a metrics.jsonl file.

    If a run resumes at step n, the lines of later steps are removed first, because the run makes these steps again.

    Args:
        path: The file. It is created if it does not exist.
        resumed_at: The step at which the run starts; 0 for a new run.
        warn: Called with one line if the file cannot be written later.

    Raises:
        BadFile: The path is not a regular file.
        UserError, OutOfRoom: The file cannot be written.
    """

    def __init__(self, path: Path, resumed_at: int = 0, warn: Callable[[str], None] = lambda text: None):
        self._warn = warn
        write_atomic(path, (_text(line).encode() for line in each_line(path) if line.get("step", 0) <= resumed_at))
        with convert_os_errors(path):
            # buffering=1 passes each line to the operating system at once, so a killed process loses no complete line.
            self._file = open(path, "a", encoding="utf-8", buffering=1)

    def add(self, report: Report) -> None:
        """Writes one line. If that fails, as on a full disk, calls `warn` once and writes no further reports."""
        try:
            self._file.write(_text(line_of(report)))
        except OSError as error:
            self._file = open(os.devnull, "w")
            self._warn(f"metrics.jsonl cannot be written: {error.strerror}; later reports are not recorded")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """Reads the lines of a file; [] if there is no file.

    A line that is not a JSON object, or whose `step` is not a number, is skipped. A process that was killed while it
    wrote can leave an incomplete line.

    Raises:
        BadFile: The path is not a regular file, or cannot be read.
    """
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict]:
    """Yields the lines that read_metrics() returns, one at a time. Raises BadFile as it does."""
    if not path.exists():
        return
    with reading(path) as f:
        while text := f.readline(MAX_LINE):
            with contextlib.suppress(BadFile):
                line = parse_json(text, str(path))
                if isinstance(line, dict) and type(line.get("step", 0)) in (int, float):
                    yield line


def _text(line: dict) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def line_of(report: Report) -> dict:
    """Returns the object that metrics.jsonl holds for a report."""
    fields = to_dict(report)
    if isinstance(report, EvalReport):
        fields = {"val_" + k if k in ("loss", "ppl", "bits_per_byte") else k: v for k, v in fields.items()}
    return {"report": kind(report)} | fields
