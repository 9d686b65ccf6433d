"""Embedding lookup with a gradient that is the same in every run.

The gradient of a lookup adds the cotangents of equal ids. MLX computes it with a scatter. On a GPU, a scatter adds with
atomic operations, whose order varies, so that two runs differ in the last bits. The lookup here therefore uses a sum in
a fixed order on a GPU. A CPU adds in a fixed order anyway, and keeps the scatter, which is the fastest there.

Shapes: N ids, V vocabulary size, C width.
"""

from mlx_gpt.device.mlx import kind, mx, nn

# Largest V for which Metal uses a product with a one-hot matrix. The matrix has as many elements as the logits of N
# tokens, and the product as many operations as that of the head. This bound is an estimate, not measured.
MAX_ONE_HOT = 1024


class Embedding(nn.Embedding):
    """Maps ids to rows of its weight (V, C), with the gradient of `gradient_name`."""

    def __call__(self, ids: mx.array) -> mx.array:
        """Returns the rows of these ids, ids.shape + (C,)."""
        return self.weight[ids] if gradient_name(len(self.weight)) == "scatter" else lookup(self.weight, ids)


@mx.custom_function
def lookup(weight: mx.array, ids: mx.array) -> mx.array:
    """Returns weight[ids], with a gradient that GRADIENTS computes."""
    return weight[ids]


@lookup.vjp
def _(primals, cotangent, _output):
    weight, ids = primals
    compute = GRADIENTS[gradient_name(len(weight))]
    return compute(ids.flatten(), cotangent.reshape(-1, weight.shape[1]), len(weight)), mx.zeros_like(ids)


def gradient_name(vocab_size: int) -> str:
    """Returns the key of GRADIENTS for this device. MLX 0.32 has no segmented product on CUDA."""
    if kind() == "metal":
        return "one-hot" if vocab_size <= MAX_ONE_HOT else "segments"
    return {"cpu": "scatter", "cuda": "one-hot"}[kind()]


def scatter(ids: mx.array, cotangents: mx.array, vocab_size: int) -> mx.array:
    """Adds cotangents (N, C) of equal ids (N,) with MLX's scatter. Returns (V, C)."""
    return mx.zeros((vocab_size, cotangents.shape[1]), cotangents.dtype).at[ids].add(cotangents)


def one_hot(ids: mx.array, cotangents: mx.array, vocab_size: int) -> mx.array:
    """Computes `scatter` as the product of a one-hot matrix (V, N) and the cotangents (N, C)."""
    return (mx.arange(vocab_size)[:, None] == ids).astype(cotangents.dtype) @ cotangents


def segments(ids: mx.array, cotangents: mx.array, vocab_size: int) -> mx.array:
    """Computes `scatter` by sorting the ids and adding each segment of equal ids with a product by ones (1, N)."""
    order = mx.argsort(ids)
    edges = mx.searchsorted(ids[order], mx.arange(vocab_size + 1, dtype=ids.dtype))
    spans = mx.stack([edges[:-1], edges[1:]], axis=1).astype(mx.uint32)  # (V, 2): start and end of each id
    ones = mx.ones((1, len(ids)), cotangents.dtype)
    return mx.segmented_mm(ones, cotangents[order], spans).squeeze(1)


GRADIENTS = {"scatter": scatter, "one-hot": one_hot, "segments": segments}
