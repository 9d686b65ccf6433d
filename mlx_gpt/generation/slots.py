"""Sequences that come and go, each at a place of its own, all advanced by one compiled step of one shape.

As the shape never changes and no row sees another, what a row says does not depend on who is beside it.
Shapes: B slots, T time, V vocabulary, K alternatives.
"""

from collections.abc import Sequence

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.generation.sampling import Draw, sample
from mlx_gpt.model.state import num_rows, put_row

MAX_ALTERNATIVES = 20  # the likeliest tokens told beside each drawn one

# Ids (B,), their log-probabilities (B,), and the likeliest ids and theirs, (B, K): before temperature and cuts.
Scored = tuple[mx.array, mx.array, mx.array, mx.array]


class Slots:
    """`count` rows of a decoder's state. The thread that makes them must be the one that uses them."""

    def __init__(self, model, count: int):
        self.block_size, self._count = model.config.block_size, count
        self._decoder = Decoder(model, lambda logits, draw: _scored(logits, sample(logits, draw)))
        self._score = mx.compile(lambda tokens, following: _scored(model.forward(tokens[None])[0][0], following))
        self.clear()

    def clear(self) -> None:
        """Forgets all sequences, whatever state a fault has left them in."""
        self._ids = mx.zeros(self._count, mx.int32)
        self._layers = self._decoder.empty(self._count)  # of each lane's part of the rows
        rows = [num_rows(layers) for layers in self._layers]
        self._firsts = [sum(rows[:i]) for i in range(len(rows))]
        mx.eval(self._layers)

    def read(self, slot: int, tokens: Sequence[int], draw: Draw) -> Scored:
        """Begins a slot anew with tokens, at most block_size of them; gives what follows, (1,)."""
        found, [(_, row)] = self._decoder.read(np.array([tokens]), draw)
        part = max(i for i, first in enumerate(self._firsts) if first <= slot)
        at = mx.array(slot - self._firsts[part])
        # Nobody else holds the old arrays when this is computed, so it writes over them.
        self._layers[part] = put_row(self._layers[part], row, at)
        self._ids = mx.slice_update(self._ids, found[0], mx.array(slot), axes=(0,))
        return found

    def step(self, positions: Sequence[int], draw: Draw) -> Scored:
        """Reads in each slot the token that came last, at its position; gives what follows, (B,), under way.

        A slot that is not in use takes part at position 0.
        """
        assert all(0 <= position < self.block_size for position in positions)
        parts = np.split(np.array(positions, np.int32), self._firsts[1:])
        states = [(mx.array(part), layers) for part, layers in zip(parts, self._layers, strict=True)]
        self._layers = []  # let go of, as above
        found, states = self._decoder.step(self._ids, draw, states)
        self._ids, self._layers = found[0], [layers for _, layers in states]
        mx.async_eval(found, self._layers)
        return found

    def score(self, tokens: Sequence[int]) -> Scored:
        """What the model held of each of tokens (T,) but the first, (T - 1,)."""
        length = len(tokens) - 1
        filled = np.pad(np.array(tokens, np.int32), (0, self._decoder.padded(length) - length))
        return tuple(a[:length] for a in self._score(mx.array(filled[:-1]), mx.array(filled[1:])))


def _scored(logits: mx.array, ids: mx.array) -> Scored:
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    top = mx.argsort(-logits, axis=-1)[:, :MAX_ALTERNATIVES]
    chosen = mx.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]
    return ids, chosen, top, mx.take_along_axis(logprobs, top, axis=-1)
