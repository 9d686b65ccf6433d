"""Autoregressive decoding with cached layer states (for attention, the keys and values).

Prefill is one forward pass over the whole prompt. After it, each step feeds one token and computes the logits of the
next. When a text is longer than the model's context, decoding continues with a sliding window of its newest tokens.

Shapes: B batch, T time, V vocabulary.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_gpt.device.lanes import divide, lanes, one_at_a_time
from mlx_gpt.device.mlx import for_few_rows, mx
from mlx_gpt.errors import UserError
from mlx_gpt.generation.penalties import penalties_of, redraw, to_batch
from mlx_gpt.generation.sampling import Draw, Sampling, sample, to_draw
from mlx_gpt.model.state import StateTree, join_rows, take_rows

MIN_PROMPT = 16  # minimum length of a padded prompt, in tokens
FEW_ROWS = 8  # a step of at most this many sequences is computed in one part
MIN_ROOM = 64  # minimum number of tokens that a state has room for


@dataclass(frozen=True, slots=True)
class States:
    """The decoding states of B sequences.

    Attributes:
        parts: The rows are divided over the lanes; one StateTree for each part of the rows.
        room: The number of tokens that each row has room for.
    """

    parts: list[StateTree]
    room: int


class Decoder:
    """Decodes B sequences at once with two compiled functions, for prompts and for single tokens.

    The first is compiled once for each B and padded length of a prompt, the second once for each B and room of a state.

    Args:
        model: The network. The memory layout of its weights may be changed in place; their values stay the same.
        choose: Called as choose(logits, draw) with logits (B, V). It selects the next tokens, and read() and step()
            return its result unchanged. `draw` is the caller's argument of read() or step(), such as a `Draw`.
    """

    def __init__(self, model, choose: Callable[[mx.array, Any], Any]):
        self.block_size = model.config.block_size
        self._source, self._model = model, model.packed()
        self._model.set_weights(for_few_rows(self._model.weights()))
        model = self._model

        def read(tokens: mx.array, length: mx.array, draw: Any) -> tuple[Any, list[StateTree]]:
            logits, trees, room = [], [], self.room(tokens.shape[1])
            for first, end, lane in _parts(*tokens.shape):
                with mx.stream(lane):
                    state, valid = model.new_state(end - first, room), mx.broadcast_to(length, (end - first,))
                    found, _ = model.forward(tokens[first:end], state=state, valid=valid)
                    logits.append(mx.take(found, length - 1, axis=1))
                    trees.append(state.tree)
            return choose(mx.concatenate(logits), draw), _divided(join_rows(trees))

        def step(ids: mx.array, draw: Any, trees: list[StateTree]) -> tuple[Any, list[StateTree]]:
            logits, after = [], []
            for (first, end, lane), tree in zip(_parts(len(ids), 1), trees, strict=True):
                with mx.stream(lane):
                    state = model.state_of(tree)
                    found, _ = model.forward(ids[first:end, None], state=state)
                    logits.append(found[:, 0])
                    after.append(state.tree)
            return choose(mx.concatenate(logits), draw), after

        # The model is an input, so that its weights can change. Otherwise they would be constants of the graphs.
        self._read, self._step = mx.compile(read, inputs=[model]), mx.compile(step, inputs=[model])

    def update(self, weights: dict[str, mx.array]) -> None:
        """Replaces the weights of the network, given by name. States computed with the old ones stay valid."""
        self._source.set_weights(weights)
        self._model.set_weights(for_few_rows(self._source.packed().weights()))

    def read(self, tokens: np.ndarray, draw: Any) -> tuple[Any, States]:
        """Reads prompts of equal length and selects the token that follows each of them (prefill).

        Prompts are padded at their end, so that only a few lengths have to be compiled. Padding has no effect: the
        network is causal, and each layer returns its state after the last real token.

        Args:
            tokens: (B, T) token ids, with T from 1 to block_size.
            draw: Passed to `choose`.

        Returns:
            The result of `choose`, and the states to continue from.
        """
        length = tokens.shape[1]
        padded = np.pad(tokens, ((0, 0), (0, self.padded(length) - length)))
        found, trees = self._read(mx.array(padded), mx.array(length), draw)
        if len(tokens) == 1:  # one row occupies one lane, so its matrix products may use all cores
            with one_at_a_time():
                mx.eval(found, trees)
        return found, States(trees, self.room(padded.shape[1]))

    def step(self, ids: mx.array, draw: Any, states: States, length: int) -> tuple[Any, States]:
        """Reads one token of each sequence, and selects the next. Returns before they are computed.

        Args:
            ids: (B,) int32, read at the positions in `states`.
            draw: Passed to `choose`.
            states: The states before these tokens.
            length: The number of tokens of the longest sequence, including the token read now; at most block_size. If
                it exceeds the room of the states, they grow first.

        Returns:
            The result of `choose`, and the new states.
        """
        if length > states.room:
            states = self.resized(states, self.room(length))
        found, trees = self._step(ids, draw, states.parts)
        return found, States(trees, states.room)

    def padded(self, length: int) -> int:
        """The next power of two, but at least MIN_PROMPT and at most block_size: 5 -> 16, 17 -> 32."""
        return min(max(1 << (length - 1).bit_length(), MIN_PROMPT), self.block_size)

    def room(self, length: int) -> int:
        """The room of a state of `length` tokens: the next power of two, at least MIN_ROOM and at most block_size."""
        return min(max(1 << (length - 1).bit_length(), MIN_ROOM), self.block_size)

    def resized(self, states: States, room: int) -> States:
        """Returns the states with room for `room` tokens in each row."""
        return States([(positions, self._model.resized(layers, room)) for positions, layers in states.parts], room)

    def empty(self, rows: int, room: int) -> States:
        """Returns the states of `rows` sequences that have not read any token, with room for `room` tokens each."""
        layers = [layer.arrays for layer in self._model.new_state(rows, room).layers]
        return States(_divided((mx.zeros(rows, mx.int32), layers)), room)

    def arranged(self, states: States, rows: Sequence[int], room: int) -> States:
        """Returns the states of the sequences `rows` of `states`, in this order, with room for `room` tokens each."""
        positions, layers = take_rows(join_rows(states.parts), mx.array(rows, dtype=mx.int32))
        return States(_divided((positions, self._model.resized(layers, room))), room)


def _divided(tree: StateTree) -> list[StateTree]:
    """Divides the states of a batch into the parts of a step."""
    parts = _parts(len(tree[0]), 1)
    return [take_rows(tree, slice(first, end)) for first, end, _ in parts] if len(parts) > 1 else [tree]


def _parts(rows: int, length: int) -> list[tuple[int, int, mx.Stream]]:
    """Divides `rows` sequences of `length` tokens over the lanes: (first row, end row (exclusive), lane) of each part.

    A step of at most FEW_ROWS sequences is computed in one part. Its products take about as long as reading the
    weights, and every part has to read all weights. Measured for a step of model-l on two cores: 4 rows take 2.7 ms in
    one part and 4.5 ms in two, 16 rows take 9.0 ms in one part and 6.9 ms in two.
    """
    streams = lanes()
    return divide(rows, rows, streams[:1] if rows * length <= FEW_ROWS else streams, block_size=length)


def decode(model, prompt: Sequence[int], how: Sampling, seed: int = 0) -> Iterator[int]:
    """Yields the token ids that follow `prompt`. The iterator never ends.

    Each token is a function of `how`, the seed, its logits, the tokens before it, and its index among the generated
    tokens (0 is the first after the prompt).

    When the context is full, the window slides: for each further token, the last block_size tokens are read again from
    position 0. The cached state cannot be used there, because every token of the window has moved to another position.

    Args:
        model: The network.
        prompt: Token ids, at least one. Only the last block_size of them are read.
        how: Sampling parameters.
        seed: Seed of the random draws.

    Raises:
        UserError: The prompt is empty, or an id is out of range.
    """
    tokens, block_size = list(prompt), model.config.block_size
    if not tokens:
        raise UserError("the prompt is empty; begin it with the tokenizer's BOS")
    require_ids(tokens, model.vocab_size)
    require_ids(how.logit_bias, model.vocab_size, "logit_bias")
    penalties = penalties_of(how, tokens, model.vocab_size)
    decoder = Decoder(model, lambda logits, draw: (sample(logits, draw), logits))

    def drawn(found: tuple[mx.array, mx.array], draw: Draw, last: mx.array | None = None) -> mx.array:
        """The next token. `last` is the token before it, if the host has not counted it."""
        ids, logits = found
        batch = to_batch([(penalties, last is not None)])
        return ids if batch is None else redraw(logits, draw, batch, ids if last is None else last)

    window, draw = tokens[-block_size:], to_draw([(how, seed, 0)])
    found, states = decoder.read(np.array([window]), draw)
    ids = drawn(found, draw)
    for index in itertools.count(1):
        draw, length = to_draw([(how, seed, index)]), len(window) + index
        if fits := length <= block_size:  # the device computes the next token while the host reads this one
            found, states = decoder.step(ids, draw, states, length)
            following = drawn(found, draw, ids)
            mx.async_eval(following, states.parts)
        tokens.append(ids.item())
        if penalties:
            penalties.add(tokens[-1])
        yield tokens[-1]
        if not fits:
            found, _ = decoder.read(np.array([tokens[-block_size:]]), draw)
            following = drawn(found, draw)
        ids = following


def require_ids(ids: Collection[int], vocab_size: int, name: str = "the prompt") -> None:
    """Raises UserError if an id of `name` is out of range. MLX itself does not check ids."""
    for id in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= id < vocab_size:
            raise UserError(f"{name} has id {id}; the vocabulary has ids from 0 to {vocab_size - 1}")
