"""What the layers of a model remember of the tokens they have read, so that decoding computes one token a step.

Shapes: B batch, T new tokens, S block_size, H heads, D head_dim.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

from mlx.utils import tree_flatten, tree_map

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.positions import Positions

# Each row's position, (B,) int32, and each layer's arrays: what a compiled graph takes and returns.
StateTree = tuple[mx.array, list[Any]]


class LayerState(Protocol):
    """What one layer remembers of each row.

    `arrays` is a tree of arrays whose first axis is the row, so that one function moves a row in or out of a batch. A
    mixer replaces `arrays` when it has read tokens.
    """

    arrays: Any

    def __init__(self, arrays: Any): ...

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, dtype: mx.Dtype) -> Self:
        """The state of `rows` rows before anything was read."""
        ...


class KVState:
    """Keys and values of every token so far, (B, H, S, D) each. A row's are valid up to its position."""

    def __init__(self, arrays: tuple[mx.array, mx.array]):
        self.arrays = arrays

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, dtype: mx.Dtype) -> "KVState":
        shape = (rows, config.n_head, config.block_size, config.head_dim)
        return cls((mx.zeros(shape, dtype), mx.zeros(shape, dtype)))

    def extend(self, k: mx.array, v: mx.array, positions: Positions) -> tuple[mx.array, mx.array]:
        """Writes k and v (B, H, T, D) at their positions and returns all keys and values, (B, H, S, D).

        The caller checks that they fit.
        """
        self.arrays = tuple(_write(old, new, positions) for old, new in zip(self.arrays, (k, v), strict=True))
        return self.arrays


def _write(old: mx.array, new: mx.array, positions: Positions) -> mx.array:
    if positions.at_start:
        return mx.slice_update(old, new, mx.array(0), axes=(2,))
    whole = old[:]
    whole[mx.arange(len(new))[:, None], :, positions.indices] = new.swapaxes(1, 2)
    return whole


class ModelState:
    """The state of every layer, and each row's position.

    Args:
        layers: One state a layer.
        positions: The number of tokens that each row has read, (B,) int32; None before anything was read. None is
            a trace-time constant: the model then skips what earlier tokens would need.
    """

    def __init__(self, layers: Sequence[LayerState], positions: mx.array | None = None):
        self.layers, self.positions = layers, positions

    @property
    def tree(self) -> StateTree:
        """The state as arrays, after tokens were read."""
        return self.positions, [layer.arrays for layer in self.layers]

    def next(self, count: int) -> Positions:
        """The positions of the next `count` tokens."""
        return Positions(0 if self.positions is None else self.positions, count)

    def advance(self, rows: int, count: int, valid: mx.array | None) -> None:
        """Moves every row on by the `count` tokens that were read, or by `valid` (B,) of them."""
        read = count if valid is None else valid
        self.positions = mx.broadcast_to(mx.array(read), (rows,)) if self.positions is None else self.positions + read


def put_row(batch: Any, row: Any, index: mx.array) -> Any:
    """A layer's arrays of a batch with row `index` replaced by the arrays of a batch of one row."""
    return tree_map(lambda old, new: mx.slice_update(old, new, index, axes=(0,)), batch, row)


def take_row(batch: Any, index: int) -> Any:
    """The arrays of row `index` of a batch, as a batch of one row."""
    return tree_map(lambda a: a[index : index + 1], batch)


def num_rows(arrays: Any) -> int:
    """The number of rows in a layer's arrays."""
    return len(tree_flatten(arrays)[0][1])
