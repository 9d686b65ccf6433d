"""Token arrays and the windows cut from them.

Shapes: N tokens, D documents, B windows, T block_size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlx_gpt import rng
from mlx_gpt.backend import mx
from mlx_gpt.data.corpus import Corpus
from mlx_gpt.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Ids (N,) uint8, uint16 or uint32, and the borders of the documents (D + 1,): 0, ..., N."""

    ids: np.ndarray
    borders: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, val_fraction: float) -> tuple["Tokens", "Tokens"]:
        """The first tokens to train on and the last `val_fraction` of them, a document cut at the border."""
        cut = int(len(self) * (1 - val_fraction))
        return self._slice(0, cut), self._slice(cut, len(self))

    def _slice(self, start: int, stop: int) -> "Tokens":
        inside = self.borders[(self.borders > start) & (self.borders < stop)]
        return Tokens(ids=self.ids[start:stop], borders=np.concatenate([[start], inside, [stop]]) - start)


def encode(corpus: Corpus, tokenizer) -> Tokens:
    """The corpus as ids; where there are several documents each ends in EOS."""
    try:
        parts = [tokenizer.encode(document) for document in corpus.documents]
    except UserError as error:
        raise UserError(f"corpus {corpus.name}: {error}; take other text, or train a new model on this one") from None
    if len(parts) > 1:
        end = np.array([tokenizer.eos_id], tokenizer.dtype)
        parts = [np.append(part, end) for part in parts]
    return Tokens(ids=np.concatenate(parts), borders=np.cumsum([0] + [len(p) for p in parts]))


class Batch(NamedTuple):
    """Inputs and targets (B, T); `mask` (B, T) float32 is 0 where a target lies past its document's end."""

    inputs: mx.array
    targets: mx.array
    mask: mx.array


class Windows:
    """A split on the device, and the windows of block_size + 1 tokens in it. No window crosses a document's end.

    A document of L tokens has L - T starts, drawn uniformly. One too short for a full window is drawn from its first
    token, its targets masked past the end, and weighs its own length in draws: every token can be drawn.
    """

    def __init__(self, tokens: Tokens, block_size: int):
        lengths = np.diff(tokens.borders)
        self.block_size, self.num_tokens = block_size, len(tokens)
        self._begins, self._lengths = tokens.borders[:-1][lengths > 1], lengths[lengths > 1]
        if not len(self._lengths):
            raise UserError(f"a split of {len(tokens)} tokens holds no window; give a longer corpus")
        starts = np.maximum(self._lengths - block_size, 1)
        self._num_starts, self._parts = starts, -(-starts // block_size)
        self._epochs: dict[tuple[int, int], np.ndarray] = {}
        weights = np.maximum(starts, np.minimum(self._lengths, block_size))
        if weights.sum() >= 1 << 31:
            raise UserError(f"corpus of {len(tokens)} tokens: at most {1 << 31} fit on the device; give a smaller one")
        self._ids = mx.array(tokens.ids)
        self._draws = mx.array(np.cumsum(weights), dtype=mx.int32)  # (D,)
        self._begin = mx.array(self._begins, dtype=mx.int32)
        self._end = mx.array(self._begins + self._lengths, dtype=mx.int32)
        self._starts = mx.array(starts, dtype=mx.int32)

    def sample(self, key: mx.array, size: int) -> Batch:
        """`size` random windows; runs on the device and can be traced."""
        return self.gather(*self.draw(key, size))

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """First token and document end, (B,) each, of `size` random windows."""
        total = self._draws[-1].astype(mx.uint32)
        draw = (rng.bits(key, mx.arange(size)) % total).astype(mx.int32)
        document = mx.searchsorted(self._draws, draw, side="right")
        start = self._begin[document] + draw % self._starts[document]
        return start, self._end[document]

    def shuffled(self, seed: int, first: int, size: int) -> tuple[mx.array, mx.array]:
        """Windows `first` to `first + size` of an endless row of epochs, as draw() gives them.

        An epoch reads each document once, from a random offset on and in random order: the starts of a document are
        cut into as many equal parts as it needs windows, and one is taken from each part, at the same offset.
        """
        epochs, places = np.divmod(np.arange(first, first + size), self._parts.sum())
        windows = np.empty((2, size), np.int32)
        for epoch in np.unique(epochs).tolist():
            own = epochs == epoch
            windows[:, own] = self._epoch(seed, epoch)[:, places[own]]
        return mx.array(windows[0]), mx.array(windows[1])

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        """First tokens and document ends, (2, W), of an epoch's windows in its order; the last two are kept."""
        if (seed, epoch) not in self._epochs:
            offset_key, order_key = rng.split(rng.key(seed, rng.EPOCHS, epoch), 2)
            offsets = np.array(rng.bits(offset_key, mx.arange(len(self._parts)))) / 2**32
            document = np.repeat(np.arange(len(self._parts)), self._parts)
            part = np.arange(len(document)) - np.repeat(np.cumsum(self._parts) - self._parts, self._parts)
            width = (self._num_starts / self._parts)[document]
            starts = self._begins[document] + ((part + offsets[document]) * width).astype(np.int64)
            order = np.array(mx.argsort(rng.bits(order_key, mx.arange(len(document)))))
            windows = np.stack([starts, (self._begins + self._lengths)[document]])[:, order]
            self._epochs = dict(list(self._epochs.items())[-1:]) | {(seed, epoch): windows}
        return self._epochs[seed, epoch]

    def gather(self, starts: mx.array, ends: mx.array) -> Batch:
        """The windows that begin at `starts` (B,), in documents that end at `ends` (B,)."""
        places = starts[:, None] + mx.arange(self.block_size + 1)  # (B, T + 1)
        ids = self._ids[mx.minimum(places, self.num_tokens - 1)].astype(mx.int32)
        mask = (places[:, 1:] < ends[:, None]).astype(mx.float32)
        return Batch(ids[:, :-1], ids[:, 1:], mask)

    def draw_batches(self, key: mx.array, windows: int, size: int) -> "Spans":
        """`windows` random windows in batches of `size`, as `sweep` gives them."""
        starts, ends = self.draw(key, windows)
        return _batches(np.array(starts), np.array(ends), size)

    def sweep(self, size: int) -> "Spans":
        """Batches of `size` windows that predict every token once, but the first of each document."""
        T = self.block_size
        starts = np.concatenate([np.arange(b, b + n - 1, T) for b, n in zip(self._begins, self._lengths, strict=True)])
        ends = np.repeat(self._begins + self._lengths, -(-(self._lengths - 1) // T))
        return _batches(starts, ends, size)


# The starts and the document ends, (B,) int32 each, of a list of batches of windows.
Spans = list[tuple[mx.array, mx.array]]


def _batches(starts: np.ndarray, ends: np.ndarray, size: int) -> Spans:
    """Cuts into batches of one size; the last is filled up with windows that are masked throughout."""
    missing = -len(starts) % size
    pair = (np.pad(starts, (0, missing)), np.pad(ends, (0, missing)))
    return [tuple(mx.array(a[i : i + size], dtype=mx.int32) for a in pair) for i in range(0, len(pair[0]), size)]
