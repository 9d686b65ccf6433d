"""Slots: rows of a batch that hold one sequence each and are advanced together by one compiled step.

Sequences start and end at any time. The shape of the step never changes, and no row depends on another row. A sequence
therefore gets the same tokens whatever the other slots hold.

Example with two slots. The prompt of sequence A is [a b], the prompt of sequence B is [x]. A position is the number of
tokens that the slot has read. read() and step() also draw the next token, which the following step reads:

    read(0, [a b])       slot 0: A at position 2   slot 1: empty
    step([2, 0])         slot 0: A at position 3   slot 1: empty; its output is meaningless and is ignored
    read(1, [x])         slot 0: A at position 3   slot 1: B at position 1; its whole state was replaced
    step([3, 1])         slot 0: A at position 4   slot 1: B at position 2

Shapes: B slots, T time, V vocabulary, K = min(MAX_ALTERNATIVES, V).
"""

from collections.abc import Sequence

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.generation.sampling import Draw, sample
from mlx_gpt.model.state import num_rows, put_row

MAX_ALTERNATIVES = 20  # number of most likely tokens that are reported with each token

# Ids (B,), their log-probabilities (B,), the K most likely ids (B, K) in descending order, and the log-probabilities of
# these (B, K). Log-probabilities are those of the model, before temperature, top-k and top-p, float32.
Scored = tuple[mx.array, mx.array, mx.array, mx.array]


class Slots:
    """The layer states and the last drawn tokens of `count` sequences.

    Only the thread that creates an instance may use it, because MLX streams belong to a thread.

    Args:
        model: The network.
        count: Number of slots.
    """

    def __init__(self, model, count: int):
        self.block_size, self._count = model.config.block_size, count
        self._decoder = Decoder(model, lambda logits, draw: _scored(logits, sample(logits, draw)))
        self._score = mx.compile(lambda tokens, following: _scored(model.forward(tokens[None])[0][0], following))
        self.clear()

    def clear(self) -> None:
        """Resets all slots. Must be called after an exception of read() or step(), which may lose the states."""
        self._ids = mx.zeros(self._count, mx.int32)
        self._layers = self._decoder.empty(self._count)  # one entry for each part of the rows, see Decoder
        rows = [num_rows(layers) for layers in self._layers]
        self._firsts = [sum(rows[:i]) for i in range(len(rows))]  # the first slot of each part
        mx.eval(self._layers)

    def read(self, slot: int, tokens: Sequence[int], draw: Draw) -> Scored:
        """Starts a sequence in a slot: reads its tokens and draws the next one. Replaces what the slot held.

        Args:
            slot: Index of the slot.
            tokens: Token ids, from 1 to block_size of them.
            draw: The arguments of a draw of one token.

        Returns:
            The drawn token, as arrays of one row.
        """
        found, [(_, row)] = self._decoder.read(np.array([tokens]), draw)
        part = max(i for i, first in enumerate(self._firsts) if first <= slot)
        at = mx.array(slot - self._firsts[part])
        # When this is evaluated, nothing else refers to the old arrays. MLX therefore updates them in place.
        self._layers[part] = put_row(self._layers[part], row, at)
        self._ids = mx.slice_update(self._ids, found[0], mx.array(slot), axes=(0,))
        return found

    def step(self, positions: Sequence[int], draw: Draw) -> Scored:
        """Reads the last drawn token of every slot and draws the next ones. Returns before they are computed.

        Args:
            positions: For each slot, the number of tokens that it has read, less than block_size. 0 for a slot that is
                not in use; its output is meaningless.
            draw: The arguments of a draw of B tokens.

        Returns:
            The drawn tokens, as arrays of B rows.
        """
        assert all(0 <= position < self.block_size for position in positions)
        parts = np.split(np.array(positions, np.int32), self._firsts[1:])
        states = [(mx.array(part), layers) for part, layers in zip(parts, self._layers, strict=True)]
        self._layers = []  # drops this reference to the old arrays, so that MLX can update them in place
        found, states = self._decoder.step(self._ids, draw, states)
        self._ids, self._layers = found[0], [layers for _, layers in states]
        mx.async_eval(found, self._layers)
        return found

    def score(self, tokens: Sequence[int]) -> Scored:
        """Computes the log-probability of every token after the first, given the tokens before it.

        Args:
            tokens: T token ids, from 2 to block_size of them.

        Returns:
            Arrays of T - 1 rows, one for each token after the first.
        """
        length = len(tokens) - 1
        filled = np.pad(np.array(tokens, np.int32), (0, self._decoder.padded(length) - length))
        return tuple(a[:length] for a in self._score(mx.array(filled[:-1]), mx.array(filled[1:])))


def _scored(logits: mx.array, ids: mx.array) -> Scored:
    """The log-probabilities of ids (B,) and of the most likely ids, from logits (B, V)."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    top = mx.argsort(-logits, axis=-1)[:, :MAX_ALTERNATIVES]
    chosen = mx.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]
    return ids, chosen, top, mx.take_along_axis(logprobs, top, axis=-1)
