"""Storage of token ids: the ids of all documents in one array, and where each document lies.

Shapes: N tokens, D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlx_gpt.device.mlx import mx


class Ids:
    """All ids of a corpus, (N,) uint8, uint16 or uint32: in memory or a mapped file, and on the device if asked."""

    def __init__(self, host: np.ndarray):
        self.host = host

    @cached_property
    def device(self) -> mx.array:
        return mx.array(np.ascontiguousarray(self.host))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Documents in an array of ids: where each begins, how long it is, (D,) int64, and the source it is from, (D,).

    `weights` says how often each source is read, next to the others.
    """

    ids: Ids
    begins: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, ids: np.ndarray, lengths: Sequence[int], sources: Sequence[int] | None = None, **rest) -> "Tokens":
        """Documents one after the other, of one source unless said otherwise."""
        lengths = np.asarray(lengths, np.int64)
        sources = np.zeros(len(lengths), np.int64) if sources is None else np.asarray(sources, np.int64)
        return cls(ids=Ids(ids), begins=np.cumsum(lengths) - lengths, lengths=lengths, sources=sources, **rest)

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def fits(self, megabytes: int) -> bool:
        """Whether the ids take no more than so many MB."""
        return self.ids.host.nbytes <= megabytes * 1_000_000

    def split(self, val_fraction: float) -> tuple["Tokens", "Tokens"]:
        """Of each source the first tokens to train on, and the last `val_fraction`; a document is cut at the border."""
        train, val = self.lengths.copy(), np.zeros_like(self.lengths)
        for source in range(len(self.weights)):
            own = self.sources == source
            ends = np.cumsum(self.lengths[own])
            cut = int(ends[-1] * (1 - val_fraction)) if len(ends) else 0
            train[own] = np.clip(cut - (ends - self.lengths[own]), 0, self.lengths[own])
        val = self.lengths - train
        return self._some(self.begins, train), self._some(self.begins + train, val)

    def _some(self, begins: np.ndarray, lengths: np.ndarray) -> "Tokens":
        kept = lengths > 0
        return replace(self, begins=begins[kept], lengths=lengths[kept], sources=self.sources[kept])
