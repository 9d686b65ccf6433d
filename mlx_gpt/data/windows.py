"""Windows of token ids, and the batches that consist of them.

Shapes: N tokens, D documents, B windows in a batch, T = block_size, W windows in an epoch or in a pass over a source.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from mlx_gpt import rng
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

MAX_TOKENS = 1 << 31  # token positions are int32 on the device


class Batch(NamedTuple):
    """Inputs and targets, (B, T) int32 each, and a mask, (B, T) float32.

    The mask is 1 for a target that belongs to the window's document, and 0 for a target past the document's end.
    """

    inputs: mx.array
    targets: mx.array
    mask: mx.array


class Windows:
    """The windows of T + 1 tokens in one split: T inputs, and the same tokens shifted by one as targets.

    A window is stored as two positions in the array of ids: that of its first token, and the end (exclusive) of its
    document. B windows are stored as an array (2, B) int32: row 0 has the first tokens, row 1 the ends of the
    documents. Ids past the end of a document may belong to the next document. The mask excludes these targets from the
    loss, so no token is predicted from another document.

    A document of L tokens has max(L - T, 1) starts, positions at which a window can begin. A document of L <= T tokens
    has one start, its first token, and the targets past its end are masked. A document of one token has no start and is
    skipped, since it has no token to predict.

    There are three ways to choose windows:

    - `draw`: random windows with replacement. First a document is drawn, with a probability proportional to
      max(L - T, min(L, T)) times the weight of its source. Then one of its starts is drawn uniformly. Documents of
      L <= T tokens are thus drawn in proportion to their length. Every start can be drawn.
    - `shuffled`: epochs in random order. An epoch reads a source of weight 1 once, and covers each of its documents
      with windows whose starts are at most T apart.
    - `sweep`: for evaluation. Every token is predicted exactly once, except the first of each document.

    Example with T = 4 and documents of 11, 3, 1 and 2 tokens, which occupy positions 0-10, 11-13, 14 and 15-16:

    >>> tokens = Tokens.of(np.arange(17, dtype=np.uint8), [11, 3, 1, 2])
    >>> windows = Windows(tokens, block_size=4)

    The documents have 7, 1, 0 and 1 starts. They are drawn with probabilities proportional to 7, 3, 0 and 2:

    >>> windows.draw(seed=0, stream="windows", index=0, size=8)
    array([[15, 11, 11, 15,  5, 11,  5,  4],
           [17, 14, 14, 17, 11, 14, 11, 11]], dtype=int32)

    An epoch divides the 7 starts 0-6 of the first document into ceil(7 / 4) = 2 equal parts of 3.5 starts. It takes one
    window from each part, both at the same random offset within their parts. In the first epoch the offset is 0.61 of a
    part, so the windows start at floor(0.61 * 3.5) = 2 and floor(1.61 * 3.5) = 5. In the second epoch the offset is
    0.94, so they start at 3 and 6. The two short documents need one window each. An epoch therefore has 4 windows, in
    random order:

    >>> windows.windows_per_epoch
    4
    >>> windows.shuffled(seed=0, first=0, size=8)
    array([[11, 15,  5,  2,  6,  3, 11, 15],
           [14, 17, 11, 11, 11, 11, 14, 17]], dtype=int32)

    The window at 11 is the document of 3 tokens. Its targets are tokens 12 and 13; the other two targets are masked:

    >>> windows.batch(np.array([[11], [14]], np.int32)).mask
    array([[1, 1, 0, 0]], dtype=float32)

    Args:
        tokens: the tokens of one split.
        block_size: T, the length of a window's inputs.
        on_device: whether all ids are stored on the device. If not, `read` takes the ids of the requested windows from
            host memory or from the mapped file.

    Attributes:
        num_tokens: the number of tokens of the split.

    Raises:
        UserError: if no document has two tokens or more, or if the array of ids has MAX_TOKENS elements or more.
    """

    def __init__(self, tokens: Tokens, block_size: int, on_device: bool = True):
        usable = tokens.lengths > 1
        self.block_size, self.num_tokens, self.on_device = block_size, len(tokens), on_device
        self._ids, self._begins, self._lengths = tokens.ids.host, tokens.begins[usable], tokens.lengths[usable]
        self._device_ids = tokens.ids.device if on_device else None
        self._sources, self._weights = tokens.sources[usable], tokens.weights
        if not len(self._lengths):
            raise UserError(
                f"a split of {len(tokens)} tokens has no document of two tokens or more; give a longer corpus"
            )
        if len(self._ids) >= MAX_TOKENS:
            raise UserError(
                f"corpus of {len(self._ids)} tokens: fewer than {MAX_TOKENS} are supported; give a smaller corpus"
            )
        self._num_starts = np.maximum(self._lengths - block_size, 1)
        draw_weights = np.maximum(self._num_starts, np.minimum(self._lengths, block_size))
        self._cumulative_weights = np.cumsum(draw_weights * np.array(self._weights)[self._sources])
        self._cache: dict[tuple, np.ndarray] = {}

    def draw(self, seed: int, stream: str, index: int, size: int) -> np.ndarray:
        """Draws `size` random windows with replacement.

        Args:
            seed: the seed of the run.
            stream: the name of a stream of random numbers, see rng.
            index: the index in the stream, for example the step. Equal arguments give equal windows.
            size: the number of windows.

        Returns:
            The windows, (2, B) int32, with B = `size`.
        """
        which, where = _uniform(seed, stream, index, 2 * size).reshape(size, 2).T
        document = np.searchsorted(self._cumulative_weights, which * self._cumulative_weights[-1], side="right")
        starts = self._begins[document] + (where * self._num_starts[document]).astype(np.int64)
        return np.stack([starts, (self._begins + self._lengths)[document]]).astype(np.int32)

    def shuffled(self, seed: int, first: int, size: int) -> np.ndarray:
        """Returns windows `first` to `first + size - 1` of an endless sequence of shuffled epochs.

        An epoch makes one pass over a source of weight 1 and two passes over a source of weight 2. Of a source of
        weight 0.5, an epoch reads half of the windows of a pass, and the next epoch reads the other half.

        A pass reads each document once. It divides the document's starts into ceil(starts / T) equal parts and takes
        one window from each part, all at the same random offset within their parts. The starts of consecutive windows
        are thus at most T apart, so no token between them is left out. At the beginning and at the end of a document, a
        pass may leave out up to T - 1 tokens. Over many epochs, every start is equally likely. The class docstring has
        an example.

        Args:
            seed: the seed of the run.
            first: the index of the first window in the sequence.
            size: the number of windows.

        Returns:
            The windows, (2, B) int32, with B = `size`. They can belong to more than one epoch.
        """
        epochs, indices = np.divmod(np.arange(first, first + size), self.windows_per_epoch)
        windows = np.empty((2, size), np.int32)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            windows[:, in_epoch] = self._epoch(seed, epoch)[:, indices[in_epoch]]
        return windows

    @property
    def windows_per_epoch(self) -> int:
        """The number of windows in one epoch over all sources."""
        return sum(self._windows_per_source)

    @cached_property
    def _num_parts(self) -> np.ndarray:
        """The number of windows that a pass takes from each document, (D,)."""
        return -(-self._num_starts // self.block_size)

    @cached_property
    def _windows_per_source(self) -> list[int]:
        """The number of windows that an epoch reads from each source: the windows of a pass times the weight."""
        per_pass = np.bincount(self._sources, self._num_parts, len(self._weights))
        return [
            max(round(n * weight), 1) if n else 0 for n, weight in zip(per_pass.tolist(), self._weights, strict=True)
        ]

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Returns one epoch's windows in shuffled order, (2, W)."""
        return self._cached((seed, epoch), lambda: self._make_epoch(seed, epoch))

    def _make_epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Computes what _epoch returns."""
        found = []
        for source, count in enumerate(self._windows_per_source):
            if not count:
                continue
            # The passes over a source form one sequence of windows, and each epoch takes the next `count` windows of
            # it. If the weight is not an integer, an epoch can therefore begin in the middle of a pass.
            per_pass = int(self._num_parts[self._sources == source].sum())
            passes, indices = np.divmod(np.arange(epoch * count, (epoch + 1) * count), per_pass)
            for number in np.unique(passes).tolist():
                found.append(self._pass(seed, source, number)[:, indices[passes == number]])
        windows = np.concatenate(found, axis=1)
        return windows[:, _permutation(seed, rng.EPOCHS, epoch, windows.shape[1])]

    def _pass(self, seed: int, source: int, number: int) -> np.ndarray:
        """Returns the windows of one pass over a source in shuffled order, (2, W)."""

        def make() -> np.ndarray:
            stream = f"{rng.EPOCHS}/{source}"
            own = np.flatnonzero(self._sources == source)
            num_parts = self._num_parts[own]
            document = np.repeat(own, num_parts)
            part = np.arange(len(document)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
            # Pass n uses two indices of the stream: 2 n for the offsets of the documents and 2 n + 1 for the order.
            offset = np.repeat(_uniform(seed, stream, 2 * number, len(own)), num_parts)
            width = self._num_starts[document] / self._num_parts[document]
            starts = self._begins[document] + ((part + offset) * width).astype(np.int64)
            windows = np.stack([starts, (self._begins + self._lengths)[document]]).astype(np.int32)
            return windows[:, _permutation(seed, stream, 2 * number + 1, len(document))]

        return self._cached((seed, source, number), make)

    def _cached(self, key: tuple, make) -> np.ndarray:
        """Returns make(), or its cached result if it was called for `key` before.

        For S sources, the cache keeps the 2 S + 2 newest arrays: enough for a batch that spans two epochs, if each
        epoch needs one pass over each source. Otherwise, some arrays may be computed again.
        """
        if key not in self._cache:
            made = make()  # for an epoch, this call adds passes to the cache
            newest = list(self._cache.items())[-2 * len(self._weights) - 1 :]
            self._cache = dict(newest) | {key: made}
        return self._cache[key]

    def read(self, windows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Prepares on the host the arrays that `gather` needs. It does not use the device, so it can run in a thread.

        Args:
            windows: the windows, (2, B) int32.

        Returns:
            If the ids are on the device: the first tokens and the document ends of the windows, (B,) int32 each. If
            not: the ids of the windows, (B, T + 1) int32, followed by these two arrays.
        """
        starts, ends = windows
        if self.on_device:
            return starts, ends
        positions = starts[:, None].astype(np.int64) + np.arange(self.block_size + 1)  # (B, T + 1)
        return self._ids[np.minimum(positions, len(self._ids) - 1)].astype(np.int32), starts, ends

    def gather(self, *arrays: mx.array) -> Batch:
        """Builds a batch on the device from the arrays that `read` returned. mx.compile can trace this method."""
        *ids, starts, ends = arrays
        positions = starts[:, None] + mx.arange(self.block_size + 1)  # (B, T + 1)
        if self.on_device:
            # MLX does not check indices. Windows of the last document may reach past the end of the array, so their
            # positions are clamped to its last element.
            ids = [self._device_ids[mx.minimum(positions, len(self._ids) - 1)].astype(mx.int32)]
        mask = (positions[:, 1:] < ends[:, None]).astype(mx.float32)
        return Batch(ids[0][:, :-1], ids[0][:, 1:], mask)

    def batch(self, windows: np.ndarray) -> Batch:
        """Returns the batch of the windows, (2, B) int32: `gather` of `read`."""
        return self.gather(*map(mx.array, self.read(windows)))

    def sweep(self, size: int) -> list[np.ndarray]:
        """Returns batches of windows that together predict every token once, except the first of each document.

        Windows begin at every T-th token of a document, so the last target of one window is the first input of the
        next. With T = 4 a document of 11 tokens gives windows at 0, 4 and 8, which predict tokens 1-4, 5-8 and 9-10.

        Args:
            size: the number of windows in a batch.

        Returns:
            A list of arrays of windows, (2, `size`) int32 each. The last one is padded by `batches`.
        """
        T = self.block_size
        counts = -(-(self._lengths - 1) // T)
        part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self._begins, counts) + part * T
        return batches(np.stack([starts, np.repeat(self._begins + self._lengths, counts)]).astype(np.int32), size)


def batches(windows: np.ndarray, size: int) -> list[np.ndarray]:
    """Splits windows, (2, n) int32, into arrays (2, `size`). The last array is padded with empty windows.

    An empty window is (0, 0). Its document ends at position 0, before its first target, so all targets are masked.
    """
    windows = np.pad(windows, ((0, 0), (0, -windows.shape[1] % size)))
    return [windows[:, i : i + size] for i in range(0, windows.shape[1], size)]


def _uniform(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """Returns uniform random numbers in [0, 1), (count,) float64: a function of the arguments alone."""
    return rng.host_bits(seed, stream, index, count) / 2**32


def _permutation(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """Returns a random permutation of 0 to count - 1, (count,) int64: a function of the arguments alone."""
    return np.argsort(rng.host_bits(seed, stream, index, count), kind="stable")
