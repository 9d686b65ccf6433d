"""Decoding state: what the layers keep of the tokens they have read, such as keys and values.

With it, decoding computes only the new token in each step. A row is one sequence of a batch.

Shapes: B rows in a batch, T new tokens in a row, S room (the tokens that a row has room for), H heads of
keys and values, D head_dim.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

from mlx.utils import tree_flatten, tree_map

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.positions import Positions

# A ModelState as arrays, which a compiled function can take and return: each row's position, (B,) int32, and the arrays
# of each layer.
StateTree = tuple[mx.array, list[Any]]


class LayerState(Protocol):
    """The state of one layer.

    Attributes:
        arrays: A tree of arrays whose first axis is the row. `put_row` and `take_rows` therefore work for every state.
            A mixer assigns new arrays after it has read tokens.
    """

    arrays: Any

    def __init__(self, arrays: Any): ...

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, room: int, dtype: mx.Dtype) -> Self:
        """Makes the state of `rows` rows that have not read any token, with room for `room` tokens in each row."""
        ...

    @staticmethod
    def resized(arrays: Any, room: int) -> Any:
        """Returns the arrays with room for `room` tokens in each row, not less than the number of tokens read.

        A state whose size does not depend on the number of tokens returns them unchanged.
        """
        ...


class KVState:
    """The KV cache of attention: `arrays` are the keys and the values of earlier tokens, (B, H, S, D) each.

    Entries at and after a row's position are undefined; the causal mask hides them.
    """

    def __init__(self, arrays: tuple[mx.array, ...]):
        self.arrays = arrays

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, room: int, dtype: mx.Dtype) -> Self:
        shape = (rows, config.num_kv_heads, room, config.head_dim)
        return cls((mx.zeros(shape, dtype), mx.zeros(shape, dtype)))

    @staticmethod
    def resized(arrays: tuple[mx.array, ...], room: int) -> tuple[mx.array, ...]:
        missing = max(room - arrays[0].shape[2], 0)
        return tuple(mx.pad(a[:, :, :room], [(0, 0), (0, 0), (0, missing), (0, 0)]) for a in arrays)

    def extend(self, *new: mx.array, positions: Positions) -> tuple[mx.array, ...]:
        """Writes keys and values, (B, H, T, D) each, at their positions. Returns all of them, (B, H, S, D) each.

        The positions must be less than S. This is not checked.
        """
        self.arrays = tuple(_write(old, rows, positions) for old, rows in zip(self.arrays, new, strict=True))
        return self.arrays


def _write(old: mx.array, new: mx.array, positions: Positions) -> mx.array:
    """Returns `old` (B, H, S, D) with `new` (B, H, T, D) at the given positions."""
    if positions.at_start:
        return mx.slice_update(old, new, mx.array(0), axes=(2,))
    B, H, S, D = old.shape
    if B == 1:
        return mx.slice_update(old, new, positions.first, axes=(2,))
    # Rows and heads are one axis here. As a separate axis between rows and positions, the heads would need an index
    # array too.
    whole = old.reshape(B * H, S, D)
    whole[positions.of_heads(H)] = new.reshape(B * H, -1, D)
    return whole.reshape(B, H, S, D)


class ModelState:
    """The decoding state of a model: the state of every layer, and the position of each row.

    Args:
        layers: The state of each layer.
        positions: The number of tokens that each row has read, (B,) int32, or None before the first tokens. None is no
            array, so a traced function can branch on it. The first tokens (a prompt) attend only to each other, not to
            the cache.
    """

    def __init__(self, layers: Sequence[LayerState], positions: mx.array | None = None):
        self.layers, self.positions = layers, positions

    @property
    def tree(self) -> StateTree:
        """The state as arrays, for `GPT.state_of`. Tokens must have been read, so that `positions` is an array."""
        return self.positions, [layer.arrays for layer in self.layers]

    def next(self, count: int) -> Positions:
        """Returns the positions of the next `count` tokens of each row."""
        return Positions(0 if self.positions is None else self.positions, count)

    def advance(self, rows: int, count: int, valid: mx.array | None) -> None:
        """Updates the positions after `count` tokens of each of `rows` rows were read.

        If `valid` (B,) is given, only the first valid[b] tokens of row b count; the rest is padding.
        """
        read = count if valid is None else valid
        self.positions = mx.broadcast_to(mx.array(read), (rows,)) if self.positions is None else self.positions + read


def put_row(batch: Any, row: Any, index: mx.array) -> Any:
    """Replaces one row in a tree of arrays, those of one or more layers (`LayerState.arrays`).

    Args:
        batch: The arrays for a batch.
        row: The arrays of the same layers for a batch of one row.
        index: The row to replace, an integer array of one element.

    Returns:
        The arrays `batch` with row `index` taken from `row`.
    """
    return tree_map(lambda old, new: mx.slice_update(old, new, index, axes=(0,)), batch, row)


def leaves(tree: Any) -> list[mx.array]:
    """Returns the arrays of a tree."""
    return [a for _, a in tree_flatten(tree)]


def take_rows(batch: Any, rows: mx.array | slice) -> Any:
    """Returns some rows of a tree of arrays, in the order of `rows`."""
    return tree_map(lambda a: a[rows], batch)


def join_rows(batches: Sequence[Any]) -> Any:
    """Returns a tree of arrays with the rows of several such trees, one after the other."""
    return tree_map(lambda *parts: mx.concatenate(parts), *batches)
