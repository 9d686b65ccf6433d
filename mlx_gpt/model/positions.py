"""The positions of tokens in their contexts, causal masks, and rotary position encoding.

Shapes: B rows (sequences) in a batch, T tokens in a row, S keys, H heads, D head_dim.
"""

from functools import cached_property

from mlx_gpt.device.mlx import mx


class Positions:
    """The positions of T consecutive tokens in each of B rows.

    Indices and masks are computed when they are first used and kept, since all layers need the same ones.

    Args:
        first: Position of the first token in each row. The int 0 means that all rows are at their start; otherwise
            (B,) int32.
        count: T, the number of tokens in each row.
    """

    def __init__(self, first: int | mx.array, count: int):
        self.first, self.count = first, count
        self._masks: dict[int, mx.array] = {}
        self._of_heads: dict[int, tuple[mx.array, mx.array]] = {}

    @property
    def at_start(self) -> bool:
        """Whether all rows are at their start. This is a Python bool, so that a traced function can branch on it."""
        return isinstance(self.first, int)

    @cached_property
    def indices(self) -> mx.array:
        """The position of every token: (T,) if all rows are at their start, otherwise (B, T)."""
        return mx.arange(self.count) if self.at_start else self.first[:, None] + mx.arange(self.count)

    def of_heads(self, num_heads: int) -> tuple[mx.array, mx.array]:
        """Indices of these positions in an array (B * H, S, D): the rows (B * H, 1), and the positions (B * H, T)."""
        if num_heads not in self._of_heads:
            rows = mx.arange(len(self.first) * num_heads)[:, None]
            self._of_heads[num_heads] = rows, mx.repeat(self.indices, num_heads, axis=0)
        return self._of_heads[num_heads]

    def mask(self, num_keys: int) -> mx.array:
        """Returns the causal mask of these tokens for `num_keys` cached keys. See `causal_mask`."""
        if num_keys not in self._masks:
            self._masks[num_keys] = causal_mask(num_keys, self.indices)
        return self._masks[num_keys]


def causal_mask(num_keys: int, queries: mx.array) -> mx.array:
    """Returns an additive mask for transposed attention scores, which are in the order (keys, queries).

    The mask is 0 for a key at or before the query and -1e9 for a key after it.

    Args:
        num_keys: S, the number of keys. Their positions are 0 to S - 1.
        queries: Positions of the queries: (T,) if they are the same in all rows, otherwise (B, T).

    Returns:
        (S, T), or (B, 1, S, T) for queries (B, T).
    """
    if queries.ndim == 2:
        queries = queries[:, None, None]
    return mx.where(mx.arange(num_keys)[:, None] > queries, -1e9, 0.0)


def rotate(x: mx.array, positions: Positions, base: float) -> mx.array:
    """Applies rotary position encoding (arXiv:2104.09864) to x (B, H, T, D).

    Element i of the first half of a head and element i of the second half form a pair. The pair is rotated by the angle
    position * base^(-2i / D).
    """
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=1.0, offset=positions.first)
