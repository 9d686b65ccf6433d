"""Weights & Biases. Its own environment variables apply, such as WANDB_MODE=offline and WANDB_PROJECT."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_gpt.watch.sinks.protocol import Line, scalars, texts

PROJECT = "mlxgpt"
LOGIN_SECONDS = 30  # a server that does not answer delays the first update by at most this long


class WeightsAndBiases:
    """Sends numbers, samples, alerts and settings. See Sink.

    The file .wandb-id of the run folder has the id of the run there, so that a resumed run continues it. Every number
    has the step as its x axis, because the steps of a resumed run may be made again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], first: int):
        import wandb

        self._run = wandb.init(
            dir=str(folder),
            project=wandb.Settings().project or PROJECT,
            name=folder.name,
            id=_id_of(folder),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", init_timeout=LOGIN_SECONDS, silent=True),
        )
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def add(self, line: Line) -> None:
        found = scalars(line) | texts(line)
        if found:
            self._run.log(found | {"iteration": line["step"]})

    def close(self) -> None:
        self._run.finish()


def _id_of(folder: Path) -> str:
    path = folder / ".wandb-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text().strip()
