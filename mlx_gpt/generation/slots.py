"""Slots: rows of a batch that hold one sequence each and are advanced together by one compiled step.

Sequences start and end at any time. The shape of the step never changes and no row reads another, so a sequence has the
same tokens whatever the other slots hold.

Example, two slots, [a b] being the prompt of A:

    read(0, [a b])       slot 0: A at position 2   slot 1: empty
    step([2, 0])         slot 0: A at position 3   slot 1: computes garbage that nobody reads
    read(1, [x])         slot 0: A at position 3   slot 1: B at position 1, written over the garbage
    step([3, 1])         both advance

Shapes: B slots, T time, V vocabulary, K alternatives.
"""

from collections.abc import Sequence

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.generation.sampling import Draw, sample
from mlx_gpt.model.state import num_rows, put_row

MAX_ALTERNATIVES = 20  # the likeliest tokens that are reported beside each drawn one

# Drawn ids (B,), their log-probabilities (B,), the likeliest ids (B, K) and theirs (B, K). Log-probabilities are those
# of the model, before temperature, top-k and top-p.
Scored = tuple[mx.array, mx.array, mx.array, mx.array]


class Slots:
    """`count` rows of a decoder's state. The thread that makes them must also use them: MLX's streams belong to it."""

    def __init__(self, model, count: int):
        self.block_size, self._count = model.config.block_size, count
        self._decoder = Decoder(model, lambda logits, draw: _scored(logits, sample(logits, draw)))
        self._score = mx.compile(lambda tokens, following: _scored(model.forward(tokens[None])[0][0], following))
        self.clear()

    def clear(self) -> None:
        """Forgets all sequences. Used at the start and after a fault."""
        self._ids = mx.zeros(self._count, mx.int32)
        self._layers = self._decoder.empty(self._count)  # of each lane's part of the rows
        rows = [num_rows(layers) for layers in self._layers]
        self._firsts = [sum(rows[:i]) for i in range(len(rows))]
        mx.eval(self._layers)

    def read(self, slot: int, tokens: Sequence[int], draw: Draw) -> Scored:
        """Starts a sequence in a slot with tokens, at most block_size of them, and draws the next one, (1,)."""
        found, [(_, row)] = self._decoder.read(np.array([tokens]), draw)
        part = max(i for i, first in enumerate(self._firsts) if first <= slot)
        at = mx.array(slot - self._firsts[part])
        # Nothing else refers to the old arrays when this is computed, so MLX updates them in place.
        self._layers[part] = put_row(self._layers[part], row, at)
        self._ids = mx.slice_update(self._ids, found[0], mx.array(slot), axes=(0,))
        return found

    def step(self, positions: Sequence[int], draw: Draw) -> Scored:
        """Reads each slot's last token at its position and draws the next ones, (B,). Returns before they are computed.

        A slot that is not in use is given position 0.
        """
        assert all(0 <= position < self.block_size for position in positions)
        parts = np.split(np.array(positions, np.int32), self._firsts[1:])
        states = [(mx.array(part), layers) for part, layers in zip(parts, self._layers, strict=True)]
        self._layers = []  # so that the step may update them in place
        found, states = self._decoder.step(self._ids, draw, states)
        self._ids, self._layers = found[0], [layers for _, layers in states]
        mx.async_eval(found, self._layers)
        return found

    def score(self, tokens: Sequence[int]) -> Scored:
        """Scores tokens (T,): each after the first, given those before it. Returns arrays of T - 1."""
        length = len(tokens) - 1
        filled = np.pad(np.array(tokens, np.int32), (0, self._decoder.padded(length) - length))
        return tuple(a[:length] for a in self._score(mx.array(filled[:-1]), mx.array(filled[1:])))


def _scored(logits: mx.array, ids: mx.array) -> Scored:
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    top = mx.argsort(-logits, axis=-1)[:, :MAX_ALTERNATIVES]
    chosen = mx.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]
    return ids, chosen, top, mx.take_along_axis(logprobs, top, axis=-1)
