"""The training state after a step, and the steps whose outputs have not been read yet."""

import dataclasses
from collections import deque
from typing import NamedTuple

import numpy as np
from mlx.utils import tree_flatten

from mlx_gpt.checkpoint.store import Checkpoint, Header, Tensors
from mlx_gpt.device.mlx import on_gpu
from mlx_gpt.train.step import State, StepOutput


class Snapshot(NamedTuple):
    """The training state after a step, with the progress and the position in the data that belong to it."""

    header: Header
    state: State

    def checkpoint(self, averaged: bool = False, tensors: Tensors | None = None) -> Checkpoint:
        """Copies the state to the host.

        Args:
            averaged: Whether the checkpoint's weights are the moving average. Its optimizer tensors then hold the
                trained ones.
            tensors: Further optimizer tensors by name.
        """
        state = dict(self.state["optimizer"])
        num_updates = state.pop("num_updates").item()
        found = Checkpoint(
            header=dataclasses.replace(self.header, num_updates=num_updates),
            weights={name: np.array(w) for name, w in self.state["weights"].items()},
            optimizer={name: np.array(a) for name, a in tree_flatten(state)} | (tensors or {}),
        )
        return found.as_averaged() if averaged else found


class Pending(NamedTuple):
    """A step that was submitted to the device: the state after it, its learning rate, and its outputs.

    `metrics` are the source's numbers about its batch.
    """

    after: Snapshot
    lr: float
    output: StepOutput
    metrics: dict[str, float]


class Pipeline:
    """The steps that were submitted to the device and whose outputs have not been read yet, in order.

    Attributes:
        lag: The number of steps that stay unread. A lag of 1 keeps a GPU busy while the host reads. On a CPU,
            submitting a step blocks until the one before it is nearly done, so a lag gains nothing (measured on
            model-m: 1.35 s per step with a lag of 1, 1.31 s without).
    """

    def __init__(self):
        self.lag = 1 if on_gpu() else 0
        self._steps: deque[Pending] = deque()
        self._complete: Snapshot | None = None

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def full(self) -> bool:
        """Whether the oldest step must be read before another one is submitted."""
        return len(self) > self.lag

    def add(self, step: Pending) -> None:
        self._steps.append(step)

    def read(self) -> Pending:
        """Waits for the oldest step and removes it.

        With a lag, the state after it is kept until the next one is read. It takes the memory of one more training
        state. Without a lag, the state is not kept: MLX reuses its memory for the next one.
        """
        step = self._steps.popleft()
        step.output.finite.item()
        self._complete = step.after if self.lag else None
        return step

    def abandon(self) -> Snapshot | None:
        """Forgets all steps after an error of the device. Returns the state after the last step that was read.

        The arrays of later steps may hold anything. Returns None if no step was read, or if there is no lag.
        """
        self._steps.clear()
        return self._complete
