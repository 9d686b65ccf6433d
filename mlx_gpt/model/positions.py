"""Positions: where the tokens of a batch stand in their contexts, and the rotary encoding of it.

Shapes: B batch, T time, S keys, H heads, D head_dim.
"""

from functools import cached_property

from mlx_gpt.device.mlx import mx

ROTARY_BASE = 10000.0


class Positions:
    """The positions of T tokens in each of B rows.

    Args:
        first: Position of the first token: 0 where every row begins here, else (B,) int32.
        count: T, the number of tokens in each row.

    What several layers need is computed once.
    """

    def __init__(self, first: int | mx.array, count: int):
        self.first, self.count = first, count
        self._masks: dict[int, mx.array] = {}

    @property
    def at_start(self) -> bool:
        """Whether every row begins here. Known while a graph is traced."""
        return isinstance(self.first, int)

    @cached_property
    def indices(self) -> mx.array:
        """The position of every token, (T,) at the start, else (B, T)."""
        return mx.arange(self.count) if self.at_start else self.first[:, None] + mx.arange(self.count)

    def mask(self, num_keys: int) -> mx.array:
        """What is added to the scores of `num_keys` cached keys: 0, or -1e9 for a key after the query, (B, 1, S, T)."""
        if num_keys not in self._masks:
            self._masks[num_keys] = causal_mask(num_keys, self.indices)
        return self._masks[num_keys]


def causal_mask(num_keys: int, queries: mx.array) -> mx.array:
    """What is added to scores: 0, or -1e9 for keys after the query.

    Args:
        num_keys: S, the number of keys, which stand at positions 0 to S - 1.
        queries: Positions of the queries: (T,) where all rows share them, else (B, T).

    Returns:
        (S, T), or (B, 1, S, T) for queries (B, T).
    """
    if queries.ndim == 2:
        queries = queries[:, None, None]
    return mx.where(mx.arange(num_keys)[:, None] > queries, -1e9, 0.0)


def rotate(x: mx.array, positions: Positions) -> mx.array:
    """Rotates the two halves of each head of x (B, H, T, D) by its position (arXiv:2104.09864)."""
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=ROTARY_BASE, scale=1.0, offset=positions.first)
