"""Sources of training batches.

Shapes: B rows (sequences) in a batch, T block_size.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlx_gpt import rng
from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.data.fim import FillInTheMiddle
from mlx_gpt.data.windows import Batch, Windows
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile

READ_AHEAD = 3  # batches that are read from disk in advance while an update is computed

Arrays = Sequence[np.ndarray]


class Source(Protocol):
    """A sequence of training batches that can be resumed.

    Attributes:
        tokens_per_batch: Number of tokens in a batch, padding included.
        num_tokens: Number of tokens in the training split.
        position: The place in the sequence, as a JSON-serializable dictionary. Checkpoints store it, and `seek` takes
            it.
        metrics: Numbers about the last batch that `next` returned, by name. They are reported with its update.
    """

    tokens_per_batch: int
    num_tokens: int
    position: dict[str, Any]
    metrics: dict[str, float]

    def next(self, step: int, weights: dict[str, mx.array]) -> Arrays:
        """Returns the data of the next update as arrays on the host, and moves on by one batch.

        Args:
            step: The number of the update, from 0.
            weights: The weights before the update, for sources whose data depend on the model.

        Returns:
            Arrays whose first axis is the row of the batch.
        """
        ...

    def gather(self, *arrays: mx.array) -> NamedTuple:
        """Builds a batch on the device from the arrays that `next` returned. Runs inside the compiled step.

        Returns:
            A NamedTuple of arrays (B, ...). The model reads its field `inputs`, the objective any of its fields.
        """
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a value of `position`, of this source or of one in an earlier process."""
        ...


class TextSource:
    """Batches of windows of a text.

    With `train.shuffle`, each epoch reads each document once (twice if its corpus has weight 2), in random order.
    Otherwise windows are drawn with replacement. If the token ids are not on the device, a thread reads the next
    READ_AHEAD batches in advance.

    Args:
        windows: The windows of the training split.
        train: The settings of [train].
        fim: Rearranges windows for fill-in-the-middle; None leaves all as they are. It needs the ids of the windows, so
            `windows` must not be on the device.
    """

    def __init__(self, windows: Windows, train: TrainConfig, fim: FillInTheMiddle | None = None):
        self._windows, self._train, self._fim = windows, train, fim
        self.tokens_per_batch = train.sequences_per_step * windows.block_size
        self.num_tokens = windows.num_tokens
        self.metrics: dict[str, float] = {}
        self._num_windows = 0  # returned so far, without those read in advance
        self._ahead: deque[Future] = deque()
        self._reader = ThreadPoolExecutor(1)

    @property
    def position(self) -> dict[str, int]:
        """The number of windows that `next` has returned so far, without those read in advance."""
        return {"windows": self._num_windows}

    def seek(self, position: dict[str, int]) -> None:
        if type(windows := position.get("windows")) is not int or windows < 0:
            raise BadFile(
                f"the checkpoint's position in the text, {str(position)[:60]!r}, is not a number of windows; use an "
                "earlier checkpoint"
            )
        self._num_windows = windows
        self._ahead.clear()  # these batches follow the old position

    def next(self, step: int, weights: dict[str, mx.array]) -> Arrays:
        """Returns the windows of an update. See `Source.next`.

        Returns:
            For each window, the position of its first token and the end (exclusive) of its document, (B,) int32 each.
            If the token ids are not on the device, the windows' ids, (B, T + 1) int32, come first.
        """
        if self._windows.on_device:
            arrays = self._windows.read(self._choose(step, 0))
        else:
            while len(self._ahead) <= READ_AHEAD:
                chosen = self._choose(step, len(self._ahead))
                self._ahead.append(self._reader.submit(self._read, step + len(self._ahead), chosen))
            arrays = self._ahead.popleft().result()
        self._num_windows += self._train.sequences_per_step
        return arrays

    def _read(self, step: int, windows: np.ndarray) -> Arrays:
        """Reads the ids of the windows of an update, and rearranges some of them."""
        arrays = self._windows.read(windows)
        return self._fim(step, *arrays) if self._fim else arrays

    def gather(self, *arrays: mx.array) -> Batch:
        return self._windows.gather(*arrays)

    def _choose(self, step: int, ahead: int) -> np.ndarray:
        """Chooses the windows of the update that comes `ahead` updates after `step`. Returns (2, B) int32."""
        size, seed = self._train.sequences_per_step, self._train.seed
        if not self._train.shuffle:
            return self._windows.draw(seed, rng.WINDOWS, step + ahead, size)
        return self._windows.shuffled(seed, self._num_windows + ahead * size, size)
