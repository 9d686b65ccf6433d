"""Trackio, a tracker on this machine. Its own environment variables apply, such as TRACKIO_DIR."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_gpt.watch.sinks.protocol import Line, scalars, texts

PROJECT = "mlxgpt"


class Trackio:
    """Stores numbers, samples, alerts and settings. See Sink. A resumed run continues the run of its folder's name."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], first: int):
        import trackio

        self._finish = trackio.finish
        with contextlib.redirect_stdout(sys.stderr):  # the results of a command alone are on stdout
            self._run = trackio.init(
                project=PROJECT,
                name=folder.name,
                resume="allow" if first else "never",
                config=dict(settings),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def add(self, line: Line) -> None:
        found = scalars(line) | texts(line)
        if found:
            self._run.log(found, step=line["step"])

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()
