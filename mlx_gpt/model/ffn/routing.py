"""Products of many tokens with the matrices of their experts, in blocks of tokens of one expert.

Shapes: A assignments of a token to an expert, k of each token; E experts; M rows of the blocks, in blocks of `size`
rows; C inputs and F outputs of a matrix.
"""

from typing import NamedTuple

from mlx_gpt.device.mlx import mx, on_gpu


class Blocks(NamedTuple):
    """The places of assignments in blocks. Each block has rows of one expert, and blocks are in the order of experts.

    Attributes:
        rows: The row of each assignment, (A,) uint32. Assignment a is of token a // k.
        sources: The assignment of each row, (M,) uint32; A for a row without one.
        experts: The expert of each block, (M / size,) uint32, in ascending order.
    """

    rows: mx.array
    sources: mx.array
    experts: mx.array


def block_size(assignments: int, num_experts: int) -> int:
    """Returns the rows of a block: a power of 2. The blocks have at most a quarter more rows than assignments.

    An expert's last block may have unused rows, which are computed too.
    """
    size = 1
    while 8 * size * num_experts <= assignments:
        size *= 2
    return size


def arrange(experts: mx.array, num_experts: int, size: int) -> Blocks:
    """Arranges assignments in blocks. The number of blocks does not depend on the values of `experts`.

    Args:
        experts: The expert of each assignment, (A,).
        num_experts: E.
        size: Rows of a block.
    """
    A = len(experts)
    num_blocks = min(A // size + num_experts, A)
    chosen = experts[:, None] == mx.arange(num_experts)  # (A, E)
    before = mx.cumsum(chosen.astype(mx.int32), axis=0)
    blocks = (before[-1] + size - 1) // size  # blocks of each expert
    ends = mx.cumsum(blocks)
    ranks = (before * chosen).sum(axis=-1) - 1  # the rank of an assignment among those of its expert
    rows = ((ends - blocks)[experts] * size + ranks).astype(mx.uint32)
    sources = mx.full((num_blocks * size,), A, mx.uint32)
    sources[rows] = mx.arange(A, dtype=mx.uint32)
    owners = (mx.arange(num_blocks)[:, None] >= ends).sum(axis=-1)
    return Blocks(rows, sources, mx.minimum(owners, num_experts - 1).astype(mx.uint32))


@mx.custom_function
def spread(x: mx.array, rows: mx.array, sources: mx.array) -> mx.array:
    """Copies each token to the rows of its assignments: x (N, C) to (M, C). Unused rows are zero."""
    k = len(rows) // len(x)
    found = x[mx.minimum(sources // k, len(x) - 1)]
    return mx.where((sources < len(rows))[:, None], found, 0)


@spread.vjp
def _(primals, cotangent, _output):
    x, rows, sources = primals
    return cotangent[rows].reshape(len(x), -1, x.shape[1]).sum(axis=1), mx.zeros_like(rows), mx.zeros_like(sources)


@mx.custom_function
def collect(y: mx.array, rows: mx.array, sources: mx.array) -> mx.array:
    """Returns the rows of all assignments: y (M, C) to (A, C)."""
    return y[rows]


@collect.vjp
def _(primals, cotangent, _output):
    _, rows, sources = primals
    found = cotangent[mx.minimum(sources, len(rows) - 1)]
    return mx.where((sources < len(rows))[:, None], found, 0), mx.zeros_like(rows), mx.zeros_like(sources)


def block_product(x: mx.array, w: mx.array, experts: mx.array) -> mx.array:
    """Multiplies blocks of rows with the transposed matrices of their experts.

    Args:
        x: (M, C).
        w: (E, F, C), of the same type.
        experts: The expert of each block, in ascending order.

    Returns:
        (M, F).
    """
    if on_gpu() or x.dtype == mx.float32:
        return _product(x, w, experts)
    # MLX's CPU backend has these products for float32 only.
    return _product(x.astype(mx.float32), w.astype(mx.float32), experts).astype(x.dtype)


@mx.custom_function
def _product(x: mx.array, w: mx.array, experts: mx.array) -> mx.array:
    """See block_product()."""
    blocks = x.reshape(len(experts), -1, x.shape[1])
    return mx.gather_mm(blocks, w.swapaxes(-1, -2), rhs_indices=experts).reshape(len(x), -1)


@_product.vjp
def _(primals, cotangent, _output):
    """The gradients need no atomic additions: the rows of an expert are one segment."""
    x, w, experts = primals
    size, order = len(x) // len(experts), mx.arange(len(w))[:, None]
    blocks = cotangent.reshape(len(experts), size, -1)
    dx = mx.gather_mm(blocks, w, rhs_indices=experts).reshape(x.shape)
    ends = mx.stack([(experts < order).sum(axis=-1), (experts <= order).sum(axis=-1)], axis=-1) * size
    dw = mx.segmented_mm(cotangent.T, x, ends.astype(mx.uint32))
    return dx, dw, mx.zeros_like(experts)
