"""Event files for TensorBoard, in the folder tensorboard/ of the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_gpt.watch.sinks.protocol import Line, scalars, texts

FLUSH_SECONDS = 5  # a background thread writes to the disk this often


class TensorBoard:
    """Writes numbers, samples, alerts and settings. See Sink.

    A resumed run writes another file, and TensorBoard hides the steps of earlier files that are made again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], first: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first + 1 if first else None,
            flush_secs=FLUSH_SECONDS,
            filename_suffix=f".{first}",  # the rest of the name has a resolution of one second
        )
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=2)}\n```", first)

    def add(self, line: Line) -> None:
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"])
        for name, text in texts(line).items():
            self._writer.add_text(name, text, line["step"])

    def close(self) -> None:
        self._writer.close()
