"""Windows cut from token ids, and batches of them.

Shapes: N tokens, D documents, B windows, T block_size.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from mlx_gpt import rng
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

MAX_PLACES = 1 << 31  # that an index on the device can tell apart


class Batch(NamedTuple):
    """Inputs and targets (B, T); `mask` (B, T) float32 is 0 where a target lies past its document's end."""

    inputs: mx.array
    targets: mx.array
    mask: mx.array


class Windows:
    """The windows of block_size + 1 tokens in a split. No window crosses a document's end.

    A document of L tokens has L - T starts, drawn uniformly. One too short for a full window is read from its first
    token, its targets masked past the end, and weighs its own length in draws: every token can be drawn.

    A window is told by its first token and its document's end. read() makes of these what gather() takes to make a
    batch of: the same, where the ids are on the device, and ids read from memory or a file, where they are not.
    """

    def __init__(self, tokens: Tokens, block_size: int, on_device: bool = True):
        readable = tokens.lengths > 1
        self.block_size, self.num_tokens, self.on_device = block_size, len(tokens), on_device
        self._ids, self._begins, self._lengths = tokens.ids.host, tokens.begins[readable], tokens.lengths[readable]
        self._device_ids = tokens.ids.device if on_device else None
        self._sources, self._weights = tokens.sources[readable], tokens.weights
        if not len(self._lengths):
            raise UserError(f"a split of {len(tokens)} tokens holds no window; give a longer corpus")
        if len(self._ids) >= MAX_PLACES:
            raise UserError(f"corpus of {len(self._ids)} tokens: at most {MAX_PLACES} can be told apart")
        self._starts = np.maximum(self._lengths - block_size, 1)
        shares = (
            np.maximum(self._starts, np.minimum(self._lengths, block_size)) * np.array(self._weights)[self._sources]
        )
        self._draws = np.cumsum(shares)
        self._epochs: dict[tuple, np.ndarray] = {}

    def draw(self, seed: int, stream: str, index: int, size: int) -> np.ndarray:
        """First tokens and document ends, (2, B) int32, of `size` random windows."""
        which, where = _uniform(seed, stream, index, 2 * size).reshape(size, 2).T
        document = np.searchsorted(self._draws, which * self._draws[-1], side="right")
        starts = self._begins[document] + (where * self._starts[document]).astype(np.int64)
        return np.stack([starts, (self._begins + self._lengths)[document]]).astype(np.int32)

    def shuffled(self, seed: int, first: int, size: int) -> np.ndarray:
        """Windows `first` to `first + size` of an endless row of epochs, as draw() gives them.

        An epoch reads a source of weight 1 once, one of weight 2 twice, in random order. Reading a source once is
        reading each of its documents once, from a random offset on: the document's starts are cut into as many equal
        parts as it needs windows, and one is taken from each part, at the same offset.
        """
        epochs, places = np.divmod(np.arange(first, first + size), self.windows_per_epoch)
        windows = np.empty((2, size), np.int32)
        for epoch in np.unique(epochs).tolist():
            own = epochs == epoch
            windows[:, own] = self._epoch(seed, epoch)[:, places[own]]
        return windows

    @property
    def windows_per_epoch(self) -> int:
        return sum(self._per_epoch)

    @cached_property
    def _parts(self) -> np.ndarray:
        """How many windows each document needs, (D,)."""
        return -(-self._starts // self.block_size)

    @cached_property
    def _per_epoch(self) -> list[int]:
        """How many windows of each source an epoch reads."""
        needed = np.bincount(self._sources, self._parts, len(self._weights))
        return [max(round(n * weight), 1) if n else 0 for n, weight in zip(needed.tolist(), self._weights, strict=True)]

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        """An epoch's windows in its order, (2, W)."""
        return self._kept((seed, epoch), lambda: self._make_epoch(seed, epoch))

    def _make_epoch(self, seed: int, epoch: int) -> np.ndarray:
        found = []
        for source, count in enumerate(self._per_epoch):
            if not count:
                continue
            needed = int(self._parts[self._sources == source].sum())
            rounds, places = np.divmod(np.arange(epoch * count, (epoch + 1) * count), needed)
            for number in np.unique(rounds).tolist():
                found.append(self._round(seed, source, number)[:, places[rounds == number]])
        windows = np.concatenate(found, axis=1)
        return windows[:, _order(seed, rng.EPOCHS, epoch, windows.shape[1])]

    def _round(self, seed: int, source: int, number: int) -> np.ndarray:
        """The windows of one reading of a source, in random order, (2, W)."""

        def make() -> np.ndarray:
            stream = f"{rng.EPOCHS}/{source}"
            own = np.flatnonzero(self._sources == source)
            document = np.repeat(own, self._parts[own])
            part = np.arange(len(document)) - np.repeat(
                np.cumsum(self._parts[own]) - self._parts[own], self._parts[own]
            )
            offset = np.repeat(_uniform(seed, stream, 2 * number, len(own)), self._parts[own])
            width = self._starts[document] / self._parts[document]
            starts = self._begins[document] + ((part + offset) * width).astype(np.int64)
            windows = np.stack([starts, (self._begins + self._lengths)[document]]).astype(np.int32)
            return windows[:, _order(seed, stream, 2 * number + 1, len(document))]

        return self._kept((seed, source, number), make)

    def _kept(self, name: tuple, make) -> np.ndarray:
        """What was made under a name; two epochs' worth is kept."""
        if name not in self._epochs:
            last = list(self._epochs.items())[-2 * len(self._weights) - 1 :]
            self._epochs = dict(last) | {name: make()}
        return self._epochs[name]

    def read(self, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        """What gather() takes, of windows (2, B); touches no device."""
        starts, ends = windows
        if self.on_device:
            return starts, ends
        places = starts[:, None].astype(np.int64) + np.arange(self.block_size + 1)  # (B, T + 1)
        return self._ids[np.minimum(places, len(self._ids) - 1)].astype(np.int32), starts, ends

    def gather(self, *read: mx.array) -> Batch:
        """The batch of what read() gave, on the device; can be traced."""
        *ids, starts, ends = read
        places = starts[:, None] + mx.arange(self.block_size + 1)  # (B, T + 1)
        if self.on_device:
            ids = [self._device_ids[mx.minimum(places, len(self._ids) - 1)].astype(mx.int32)]
        mask = (places[:, 1:] < ends[:, None]).astype(mx.float32)
        return Batch(ids[0][:, :-1], ids[0][:, 1:], mask)

    def batch(self, windows: np.ndarray) -> Batch:
        """The batch of windows (2, B)."""
        return self.gather(*map(mx.array, self.read(windows)))

    def sweep(self, size: int) -> list[np.ndarray]:
        """Batches of `size` windows, (2, B) each, that predict every token once, but the first of each document."""
        T = self.block_size
        counts = -(-(self._lengths - 1) // T)
        part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self._begins, counts) + part * T
        return batches(np.stack([starts, np.repeat(self._begins + self._lengths, counts)]).astype(np.int32), size)


def batches(windows: np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts into batches of one size; the last is filled up with windows that are masked throughout."""
    windows = np.pad(windows, ((0, 0), (0, -windows.shape[1] % size)))
    return [windows[:, i : i + size] for i in range(0, windows.shape[1], size)]


def _uniform(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """Numbers from 0 to 1, (count,) float64."""
    return rng.host_bits(seed, stream, index, count) / 2**32


def _order(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """A random order of 0 to count - 1."""
    return np.argsort(rng.host_bits(seed, stream, index, count), kind="stable")
