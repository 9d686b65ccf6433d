"""Slots: rows of a batch that hold one sequence each and are advanced together by one compiled step.

Sequences start and end at any time, and no row depends on another row. A shape of the batch is its number of
rows and the number of tokens that each row has room for. The batch grows and shrinks between a few shapes. The step is
compiled once for each of them, and takes less time in a smaller one.

A sequence must get the same tokens in every shape. The shapes compute the same function, but the matrix products of
some devices and libraries round differently for other numbers of rows. Slots therefore compares all shapes when it
starts. If one of them differs in a single bit, only the largest shape is used.

Example with up to four slots. The prompt of sequence A is [a b], the prompt of sequence B is [x]. A position is the
number of tokens that the slot has read. read() and step() also draw the next token, which the following step reads.
The arguments `draw`, `penalties` and `room` are left out:

    read(0, [a b])       slot 0: A at position 2
    step([2])            slot 0: A at position 3
    arrange([0], 4)      slot 0: A at position 3   slots 1 to 3: empty
    read(1, [x])         slot 0: A at position 3   slot 1: B at position 1
    step([3, 1, 0, 0])   slot 0: A at position 4   slot 1: B at position 2   slots 2 and 3: meaningless output
    arrange([1], 1)      slot 0: B at position 2

Shapes: B slots, T time, V vocabulary, K = min(MAX_ALTERNATIVES, V).
"""

from collections.abc import Sequence

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder, States
from mlx_gpt.generation.penalties import PenaltyBatch, redraw
from mlx_gpt.generation.sampling import Draw, Sampling, sample, to_draw
from mlx_gpt.model.state import join_rows, leaves, put_row

MAX_ALTERNATIVES = 20  # number of most likely tokens that are computed with each token
GROWTH = 4  # ratio of two successive numbers of slots
IDLE = (Sampling(temperature=0), 0, 0)  # (sampling, seed, index) of the draw in an unused slot
PROBE_TOKENS = 24  # tokens of each sequence on which the shapes are compared

# Ids (B,), their log-probabilities (B,), their log-probabilities at the temperature of their draw (B,), the K most
# likely ids (B, K) in descending order, and the log-probabilities of these (B, K). Log-probabilities are those of the
# model, float32, before every other option of sampling. A temperature of 0 counts as 1.
Scored = tuple[mx.array, mx.array, mx.array, mx.array, mx.array]


class Slots:
    """The layer states and the last drawn tokens of up to `count` sequences.

    Only the thread that creates an instance may use it, because MLX streams belong to a thread. Creating it compiles
    all shapes.

    Args:
        model: The network.
        count: Largest number of slots.

    Attributes:
        num_rows: B, the present number of slots.
        sizes: The possible values of num_rows, ascending: 1, 4, 16, ... and `count`, or `count` alone.
    """

    def __init__(self, model, count: int):
        self.block_size, self._vocab_size = model.config.block_size, model.vocab_size
        self._decoder = Decoder(model, lambda logits, draw: (_scored(logits, sample(logits, draw), draw[1]), logits))
        self._score = mx.compile(lambda *tokens: self._scored_prompt(model, *tokens), inputs=[model])
        self.sizes = [*(GROWTH**i for i in range(count) if GROWTH**i < count), count]
        self._rooms = sorted({self._decoder.room(length) for length in range(1, self.block_size + 1)})
        self._compile_prompts()
        if not self._shapes_agree():
            self.sizes, self._rooms = [count], [self.block_size]
        self.clear()

    @property
    def num_rows(self) -> int:
        return len(self._ids)

    @property
    def room(self) -> int:
        """The number of tokens that each slot has room for."""
        return self._states.room

    def room_for(self, length: int) -> int:
        """The smallest room for sequences of `length` tokens, at most block_size."""
        return next(room for room in self._rooms if room >= length)

    def clear(self) -> None:
        """Empties all slots. Must be called after an exception of read() or step(), which may lose the states."""
        self._reset(self.sizes[0], self._rooms[0])

    def arrange(self, order: Sequence[int], num_rows: int, room: int) -> None:
        """Changes the shape of the batch.

        Args:
            order: The slots to keep, in their new order. They become the first slots; the others are empty.
            num_rows: The new number of slots, one of `sizes`.
            room: The new room, a result of room_for() for the longest of these sequences or a longer one.
        """
        rows = [*order, *[0] * (num_rows - len(order))]
        self._ids, self._states = self._ids[mx.array(rows)], self._decoder.arranged(self._states, rows, room)

    def read(self, slot: int, tokens: Sequence[int], draw: Draw, penalties: PenaltyBatch | None = None) -> Scored:
        """Starts a sequence in a slot: reads its tokens and draws the next one. Replaces what the slot held.

        Args:
            slot: Index of the slot.
            tokens: Token ids, from 1 to block_size of them.
            draw: The arguments of a draw of one token.
            penalties: The penalties of the sequence, or None if it has none.

        Returns:
            The drawn token, as arrays of one row.
        """
        (found, logits), row = self._decoder.read(np.array([tokens]), draw)
        if penalties:
            found = _redrawn(found, logits, draw, penalties, found[0])
        self._grow(len(tokens))
        [(_, layers)] = self._decoder.resized(row, self.room).parts
        first = 0
        for i, (positions, part) in enumerate(self._states.parts):
            if first <= slot < first + len(positions):
                # When this is evaluated, nothing else refers to the old arrays. MLX therefore updates them in place.
                self._states.parts[i] = positions, put_row(part, layers, mx.array(slot - first))
            first += len(positions)
        self._ids = mx.slice_update(self._ids, found[0], mx.array(slot), axes=(0,))
        return found

    def step(self, positions: Sequence[int], draw: Draw, penalties: PenaltyBatch | None = None) -> Scored:
        """Reads the last drawn token of every slot and draws the next ones. Returns before they are computed.

        Args:
            positions: For each slot, the number of tokens that it has read, less than block_size. 0 for a slot that
                takes no part in this step (empty, full or finished): its output is meaningless, and its state is lost.
            draw: The arguments of a draw of B tokens.
            penalties: The penalties of the B sequences, or None if no sequence has any.

        Returns:
            The drawn tokens, as arrays of B rows.
        """
        assert all(0 <= position < self.block_size for position in positions)
        # No name refers to the old arrays when the new ones are evaluated, so MLX updates them in place.
        (found, logits), self._states = self._decoder.step(self._ids, draw, self._at(positions), max(positions) + 1)
        if penalties:
            found = _redrawn(found, logits, draw, penalties, self._ids)
        self._ids = found[0]
        mx.async_eval(found, self._states.parts)
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

    def update(self, weights: dict[str, mx.array]) -> None:
        """Replaces the weights of the network, given by name. Sequences go on from the states that they have."""
        self._decoder.update(weights)

    @staticmethod
    def _scored_prompt(model, tokens: mx.array, following: mx.array) -> Scored:
        logits = model.forward(tokens[None])[0][0]
        return _scored(logits, following, mx.ones(len(logits)))

    def _at(self, positions: Sequence[int]) -> States:
        """Returns the states with other positions."""
        ends = np.cumsum([len(at) for at, _ in self._states.parts])
        parts = zip(np.split(np.array(positions, np.int32), ends[:-1]), self._states.parts, strict=True)
        return States([(mx.array(at), layers) for at, (_, layers) in parts], self.room)

    def _reset(self, num_rows: int, room: int) -> None:
        self._ids, self._states = mx.zeros(num_rows, mx.int32), self._decoder.empty(num_rows, room)
        mx.eval(self._ids, self._states.parts)

    def _grow(self, length: int) -> None:
        """Makes room for sequences of `length` tokens."""
        if length > self.room:
            self._states = self._decoder.resized(self._states, self.room_for(length))

    def _compile_prompts(self) -> None:
        """Compiles prefill for every padded length. A context of 100 tokens has 16, 32, 64 and 100."""
        for length in sorted({self._decoder.padded(length) for length in range(1, self.block_size + 1)}):
            found, states = self._decoder.read(np.zeros((1, length), np.int32), to_draw([IDLE]))
            mx.eval(found, states.parts)

    def _shapes_agree(self) -> bool:
        """Compiles the step in every shape, on sequences of PROBE_TOKENS random tokens.

        Returns whether each sequence has the same log-probabilities and layer states in every shape, bit for bit.
        """
        count, length = self.sizes[-1], min(PROBE_TOKENS, self.block_size - 1)
        self._reset(count, self._rooms[0])
        for slot in range(count if length else 0):
            tokens = np.random.default_rng(slot).integers(self._vocab_size, size=length)
            self.read(slot, tokens, to_draw([IDLE]))
        ids, states = self._ids, self._states

        def bits(num_rows: int, room: int) -> list[np.ndarray]:
            """The results of a step in this shape, and the layer states after it, of each sequence."""
            self._ids, self._states = ids, states
            self.arrange(range(num_rows), num_rows, room)
            found = self.step([length] * num_rows, to_draw([IDLE] * num_rows))
            self.arrange(range(num_rows), num_rows, self._rooms[0])
            return [np.array(a) for a in leaves((found, join_rows(self._states.parts)))]

        expected = bits(count, self._rooms[-1])
        return all(
            np.array_equal(a, b[: len(a)])
            for num_rows in self.sizes
            for room in self._rooms
            for a, b in zip(bits(num_rows, room), expected, strict=True)
        )


def _scored(logits: mx.array, ids: mx.array, temperature: mx.array) -> Scored:
    """The log-probabilities of ids (B,) and of the most likely ids, from logits (B, V) and temperatures (B,)."""
    logits = logits.astype(mx.float32)
    logprobs = _logprobs(logits)
    top = mx.argsort(-logits, axis=-1)[:, :MAX_ALTERNATIVES]
    scaled = _logprobs(logits / mx.where(temperature == 0, 1, temperature)[:, None])
    chosen, drawn = (mx.take_along_axis(values, ids[:, None], axis=-1)[:, 0] for values in (logprobs, scaled))
    return ids, chosen, drawn, top, mx.take_along_axis(logprobs, top, axis=-1)


def _redrawn(scored: Scored, logits: mx.array, draw: Draw, penalties: PenaltyBatch, last: mx.array) -> Scored:
    """Draws the tokens of the rows with penalties again. `last` is the last token of each row, (B,)."""
    again = _scored(logits, redraw(logits, draw, penalties, last), draw[1])
    own, top = [mx.where(penalties.used, a, b) for a, b in zip(again[:3], scored[:3], strict=True)], scored[3:]
    return *own, *top


def _logprobs(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
