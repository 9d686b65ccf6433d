"""Sources: what each update trains on.

Shapes: B batch, T block_size.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlx_gpt import rng
from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.windows import Batch, Windows
from mlx_gpt.device.mlx import mx

READ_AHEAD = 3  # updates whose text is being read while one is computed

Arrays = Sequence[np.ndarray]


class Source(Protocol):
    """A sequence of batches that can say where it stands and continue from there.

    `tokens_per_batch` counts the tokens of a batch, padding included; `num_tokens` those of the split.
    `position` is a JSON-serializable dictionary.
    """

    tokens_per_batch: int
    num_tokens: int
    position: dict[str, Any]

    def next(self, step: int, weights: dict[str, mx.array]) -> Arrays:
        """The host arrays of update `step`, whose first axis is the row. `weights` are those before the update."""
        ...

    def gather(self, *arrays: mx.array) -> NamedTuple:
        """The batch of what next() gave, each field (B, ...), for the objective. Runs inside the compiled step."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a position that this or an earlier source returned."""
        ...


class TextSource:
    """Windows of a text: each document once an epoch, or windows drawn with replacement.

    A text that is not on the device is read some updates ahead, in a thread.
    """

    def __init__(self, windows: Windows, train: TrainConfig):
        self._windows, self._train = windows, train
        self.tokens_per_batch = train.sequences_per_step * windows.block_size
        self.num_tokens = windows.num_tokens
        self._num_windows = 0  # read so far
        self._ahead: deque[Future] = deque()
        self._reader = ThreadPoolExecutor(1)

    @property
    def position(self) -> dict[str, int]:
        """The number of windows read so far."""
        return {"windows": self._num_windows}

    def seek(self, position: dict[str, int]) -> None:
        self._num_windows = position["windows"]
        self._ahead.clear()

    def next(self, step: int, weights: dict[str, mx.array]) -> Arrays:
        """The windows of an update.

        Returns:
            Positions of first tokens and document ends, (B,) each, preceded by ids (B, T + 1) unless the text is on
            the device.
        """
        if self._windows.on_device:
            arrays = self._windows.read(self._choose(step, 0))
        else:
            while len(self._ahead) <= READ_AHEAD:
                chosen = self._choose(step, len(self._ahead))
                self._ahead.append(self._reader.submit(self._windows.read, chosen))
            arrays = self._ahead.popleft().result()
        self._num_windows += self._train.sequences_per_step
        return arrays

    def gather(self, *arrays: mx.array) -> Batch:
        return self._windows.gather(*arrays)

    def _choose(self, step: int, ahead: int) -> np.ndarray:
        """The windows of the update that comes `ahead` updates after `step`, (2, B)."""
        size, seed = self._train.sequences_per_step, self._train.seed
        if not self._train.shuffle:
            return self._windows.draw(seed, rng.WINDOWS, step + ahead, size)
        return self._windows.shuffled(seed, self._num_windows + ahead * size, size)
