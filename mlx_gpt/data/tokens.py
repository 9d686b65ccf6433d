"""Storage of token ids: one array of the ids of all documents, and the position and length of each document.

Shapes: N tokens, D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mlx_gpt.device.mlx import mx


class Ids:
    """The ids of a corpus on the host and, after the first use of `device`, on the device.

    Args:
        host: the ids, (N,) uint8, uint16 or uint32: a NumPy array, or a memory map of a token file.

    Attributes:
        host: the argument.
        device: a copy of `host` as an MLX array, which is made at its first use.
    """

    def __init__(self, host: np.ndarray):
        self.host = host

    @cached_property
    def device(self) -> mx.array:
        return mx.array(np.ascontiguousarray(self.host))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A set of documents, stored in one array of ids.

    The length of a Tokens object is the number of tokens of its documents.

    Attributes:
        ids: the array. The training and the validation split share one array, so the array can also contain tokens that
            belong to no document of this set.
        begins: the position of each document's first token in the array, (D,) int64.
        lengths: the number of tokens of each document, (D,) int64.
        sources: the index of the source that each document comes from, (D,) int64.
        weights: how often each source is read, relative to the others; one number for each source.
    """

    ids: Ids
    begins: np.ndarray
    lengths: np.ndarray
    sources: np.ndarray
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, ids: np.ndarray, lengths: Sequence[int], sources: Sequence[int] | None = None, **rest) -> "Tokens":
        """Makes a set of documents that follow each other in `ids` without gaps.

        Args:
            ids: the ids of all documents, (N,).
            lengths: the number of tokens of each document, D items. Their sum is N.
            sources: the index of each document's source, D items. By default, all documents are of source 0.
            rest: further attributes, such as `weights`.
        """
        lengths = np.asarray(lengths, np.int64)
        sources = np.zeros(len(lengths), np.int64) if sources is None else np.asarray(sources, np.int64)
        return cls(ids=Ids(ids), begins=np.cumsum(lengths) - lengths, lengths=lengths, sources=sources, **rest)

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def fits(self, megabytes: int) -> bool:
        """Whether the array of ids takes at most `megabytes` MB (10^6 bytes each)."""
        return self.ids.host.nbytes <= megabytes * 1_000_000

    def split(self, val_fraction: float) -> tuple["Tokens", "Tokens"]:
        """Splits each source: the fraction `val_fraction` of its tokens, at its end, is for validation.

        The other tokens are for training. A document that contains the border is cut into two documents:

        >>> train, val = Tokens.of(np.arange(10), [6, 4]).split(0.5)
        >>> train.lengths.tolist(), val.lengths.tolist()
        ([5], [1, 4])

        Returns:
            The training tokens and the validation tokens. Both share the array of ids.
        """
        train = self.lengths.copy()
        for source in range(len(self.weights)):
            own = self.sources == source
            ends = np.cumsum(self.lengths[own])
            cut = int(ends[-1] * (1 - val_fraction)) if len(ends) else 0
            train[own] = np.clip(cut - (ends - self.lengths[own]), 0, self.lengths[own])
        val = self.lengths - train
        return self._without_empty(self.begins, train), self._without_empty(self.begins + train, val)

    def _without_empty(self, begins: np.ndarray, lengths: np.ndarray) -> "Tokens":
        """Returns the same ids with other documents. Documents of length 0 are left out."""
        nonempty = lengths > 0
        return replace(self, begins=begins[nonempty], lengths=lengths[nonempty], sources=self.sources[nonempty])
