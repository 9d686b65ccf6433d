"""Decoding: the prompt at once, then one token a step over a cached state, sliding past the model's context.

Shapes: B batch, T time, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlx_gpt.device.lanes import divide, lanes, one_at_a_time
from mlx_gpt.device.mlx import for_few_rows, mx
from mlx_gpt.errors import UserError
from mlx_gpt.generation.sampling import Sampling, sample, to_draw
from mlx_gpt.model.state import StateTree

MIN_PROMPT = 16  # tokens that a prompt is padded to at least


class Decoder:
    """Decodes sequences side by side. Compiled: once for the step of B rows, once for each size of prompt.

    `choose(logits, draw)` maps logits (B, V) to what is returned, the next ids (B,) alone or as its first element;
    `draw` is passed on from the caller.
    """

    def __init__(self, model, choose: Callable[[mx.array, Any], Any]):
        self.block_size = model.config.block_size
        self._model = model = model.packed()
        model.set_weights(for_few_rows(model.weights()))

        def read(tokens: mx.array, length: mx.array, draw: Any) -> tuple[Any, list[StateTree]]:
            logits, trees = [], []
            for first, end, lane in _parts(tokens):
                with mx.stream(lane):
                    state, valid = model.new_state(end - first), mx.broadcast_to(length, (end - first,))
                    found, _ = model.forward(tokens[first:end], state=state, valid=valid)
                    logits.append(mx.take(found, length - 1, axis=1))
                    trees.append(state.tree)
            return choose(mx.concatenate(logits), draw), trees

        def step(ids: mx.array, draw: Any, trees: list[StateTree]) -> tuple[Any, list[StateTree]]:
            logits, after = [], []
            for (first, end, lane), tree in zip(_parts(ids), trees, strict=True):
                with mx.stream(lane):
                    state = model.state_of(tree)
                    found, _ = model.forward(ids[first:end, None], state=state)
                    logits.append(found[:, 0])
                    after.append(state.tree)
            return choose(mx.concatenate(logits), draw), after

        self._read, self.step = mx.compile(read), mx.compile(step)

    def read(self, tokens: np.ndarray, draw: Any) -> tuple[Any, list[StateTree]]:
        """What follows tokens (B, T), and the state to continue from.

        Prompts are padded at their end to a power of two, so that few lengths are ever traced. Padding changes nothing
        for the tokens before it, and no layer remembers it.
        """
        length = tokens.shape[1]
        padded = np.pad(tokens, ((0, 0), (0, self.padded(length) - length)))
        found = self._read(mx.array(padded), mx.array(length), draw)
        if len(tokens) == 1:
            with one_at_a_time():
                mx.eval(found)
        return found

    def padded(self, length: int) -> int:
        """The length that a prompt of `length` tokens is padded to."""
        return min(max(1 << (length - 1).bit_length(), MIN_PROMPT), self.block_size)

    def empty(self, rows: int) -> list[Any]:
        """The layers' arrays of `rows` sequences before anything was read, for each lane's part of the rows."""
        parts = _parts(mx.zeros((rows, 1)))
        return [[layer.arrays for layer in self._model.new_state(end - first).layers] for first, end, _ in parts]


def _parts(tokens: mx.array) -> list[tuple[int, int, mx.Stream]]:
    """The rows of (B, ...), divided over the lanes."""
    rows = len(tokens)
    return divide(rows, rows, lanes(), block_size=tokens.size // rows)


def decode(model, prompt: Sequence[int], how: Sampling, seed: int = 0) -> Iterator[int]:
    """Yields the token ids that follow `prompt`, without end.

    The draw of a token depends on the seed, its index in the text and its logits. Past block_size the window slides:
    for each new token the last block_size tokens are read again from position 0, as learned positions require.

    Args:
        model: The network.
        prompt: Token ids, at least one.
        how: How tokens are drawn.
        seed: Decides the draws.

    Raises:
        UserError: The prompt is empty, or an id is out of range.
    """
    tokens, block_size = list(prompt), model.config.block_size
    require_ids(tokens, model.vocab_size)
    decoder = Decoder(model, sample)
    window = tokens[-block_size:]
    ids, state = decoder.read(np.array([window]), to_draw([(how, seed, 0)]))
    room = block_size - len(window)
    for index in itertools.count(1):
        draw = to_draw([(how, seed, index)])
        if fits := room > 0:  # the device computes the next step while the host reads this token
            following, state = decoder.step(ids, draw, state)
            mx.async_eval(following, state)
            room -= 1
        tokens.append(ids.item())
        yield tokens[-1]
        if not fits:
            following, _ = decoder.read(np.array([tokens[-block_size:]]), draw)
        ids = following


def require_ids(tokens: list[int], vocab_size: int) -> None:
    """Raises UserError for an empty prompt or an id out of range, which MLX would read garbage for."""
    if not tokens:
        raise UserError("the prompt is empty; begin it with the tokenizer's BOS")
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= vocab_size:
        raise UserError(f"prompt ids from {low} to {high}, the vocabulary has 0 to {vocab_size - 1}")
