"""Implementations ("kernels") of causal attention. All compute the same function; the fastest depends on the device.

Shapes: B rows (sequences) in a batch, T queries, S keys, H heads of queries, K heads of keys and values, D width of a
query or key, E width of a value. Query head h uses the keys and values of head h // (H / K). Several functions compute
transposed scores, (B, H, S, T), which have the keys before the queries.
"""

from collections.abc import Callable
from typing import NamedTuple

from mlx_gpt.device.mlx import kind, mx, on_gpu
from mlx_gpt.model.positions import causal_mask

# Widths of a head for which MLX's Metal backend has fused kernels, forward and backward. It has none for 32 and 48.
FUSED_HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)
# attend(q, k, v, scale) maps queries (B, H, T, D), keys (B, K, T, D) and values (B, K, T, E) to (B, H, T, E). A score
# is scale q k.
Attend = Callable[[mx.array, mx.array, mx.array, float], mx.array]


class Choice(NamedTuple):
    """The kernel for some cases on one kind of device.

    A case has a head width, a context of T tokens, and a compute type. MLX's unfused default is never chosen: it reads
    or writes the scores about twenty times per step.

    Attributes:
        device: "cpu", "metal" or "cuda".
        fits: fits(D, T, dtype) says whether this row is for the case.
        kernel: The name in KERNELS.
        source: Where the choice comes from.
    """

    device: str
    fits: Callable[[int, int, mx.Dtype], bool]
    kernel: str
    source: str


HALF = (mx.bfloat16, mx.float16)
# What "auto" stands for. The first row that fits counts. The last row of a device fits every case.
CHOICES = (
    Choice("cpu", lambda D, T, dtype: True, "blocks", "measured on Linux: skips three eighths of the scores"),
    Choice("metal", lambda D, T, dtype: D in FUSED_HEAD_DIMS, "fused", "MLX 0.32 sources: a kernel for this width"),
    # From width 32 on, padding at most doubles the operations. The bound is an estimate.
    Choice("metal", lambda D, T, dtype: 32 <= D <= 256, "padded", "MLX 0.32 sources: a kernel for a wider head"),
    Choice("metal", lambda D, T, dtype: True, "blocks", "MLX 0.32 sources: no kernel for a width close to it"),
    # cuDNN has a gradient only for contexts that are a multiple of 128, and no kernel for float32.
    Choice(
        "cuda",
        lambda D, T, dtype: dtype in HALF and D % 8 == 0 and D <= 128 and T % 128 == 0,
        "fused",
        "MLX 0.32 sources, not measured",
    ),
    Choice("cuda", lambda D, T, dtype: True, "blocks", "MLX 0.32 sources, not measured: no fused kernel"),
)


def make_attend(name: str = "auto", query_blocks: int = 4) -> Attend:
    """Returns the attention function for training and prompts.

    Args:
        name: A name in KERNELS, or "auto", which chooses the kernel for the queries of each call. See CHOICES.
        query_blocks: The number of query blocks of the kernel "blocks". The others ignore it.
    """

    def attend(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        kernel = kernel_of(name, q.shape[-1], q.shape[-2], q.dtype)
        if name == "auto" and kernel == "fused" and q.shape[-1] != v.shape[-1]:
            kernel = "padded"  # MLX 0.32 sources: fused kernels need values as wide as the queries
        return KERNELS[kernel](q, k, v, scale, query_blocks=query_blocks)

    return attend


def kernel_of(name: str, head_dim: int, context: int, dtype: mx.Dtype) -> str:
    """Returns the name in KERNELS for a value of `speed.attention`: resolves "auto" for this device and case.

    Args:
        name: A name in KERNELS, or "auto".
        head_dim: D, the head width.
        context: T, the number of queries.
        dtype: The compute type.
    """
    if name != "auto":
        return name
    return next(c.kernel for c in CHOICES if c.device == kind() and c.fits(head_dim, context, dtype))


def attend_cached(q: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Computes attention of new queries over cached keys and values.

    Args:
        q: Queries, (B, H, T, D).
        keys: Cached keys, (B, K, S, D).
        values: Cached values, (B, K, S, E).
        scale: The factor of the scores.
        mask: (B, 1, S, T) or (S, T), as `causal_mask` returns it. It is added to the transposed scores.

    Returns:
        (B, H, T, E).
    """
    if on_gpu():
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=_t(mask).astype(q.dtype))
    (B, H, T, D), K = q.shape, keys.shape[1]
    if H != K:  # the heads that share keys become further queries of one head, R = H / K times as many
        q, mask = q.reshape(B, K, -1, D), mx.tile(mask, H // K) if T > 1 else mask
    scores = keys @ _t(q) + mask  # (B, K, S, R T)
    exp = mx.exp((scores - mx.max(scores, axis=-2, keepdims=True)) * scale)
    return (_t(exp) @ values / _t(mx.sum(exp, axis=-2, keepdims=True))).reshape(B, H, T, -1)


def fused(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 1) -> mx.array:
    """Computes attention with MLX's own function. `query_blocks` is ignored.

    MLX uses a fused kernel if the device has one for this head width, and separate operations otherwise.
    """
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")


def padded(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 1) -> mx.array:
    """Computes fused() with heads padded with zeros to the next width in FUSED_HEAD_DIMS. `query_blocks` is ignored.

    Zeros in queries and keys do not change the scores. Zeros in the values give output channels that are cut off.
    """
    widest = max(q.shape[-1], v.shape[-1])
    width = next((d for d in FUSED_HEAD_DIMS if d >= widest), widest)
    q, k, padded_v = (mx.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in (q, k, v))
    return fused(q, k, padded_v, scale)[..., : v.shape[-1]]


def blocks(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 4) -> mx.array:
    """Computes attention for one block of queries at a time, each with the keys up to the end of the block.

    This skips most of the scores that the causal mask would discard. With T = 8 and four blocks, the queries 0-1, 2-3,
    4-5 and 6-7 need the keys 0-1, 0-3, 0-5 and 0-7. These are 2 * (2 + 4 + 6 + 8) = 40 scores of 64, or five eighths.
    """
    (H, T), K = q.shape[1:3], k.shape[1]
    k, v = (mx.repeat(a, H // K, axis=1) if H != K else a for a in (k, v))
    ends = [T * i // min(query_blocks, T) for i in range(min(query_blocks, T) + 1)]
    return _attend_by_blocks(scale, list(zip(ends, ends[1:], strict=False)))(q, k, v)[0]


def _attend_by_blocks(scale: float, spans: list[tuple[int, int]]):
    """Makes attend(q, k, v) for spans (first, end) of queries, with a gradient written by hand.

    attend returns y (B, H, T, D), the sums of the exponentials (B, H, T, 1), and the transposed exponentials of each
    span. All but y are for the gradient only: their own cotangents are ignored.

    With the scores S = scale Q K^T, E = exp(S - rowmax(S)), P = E / rowsum(E), y = P V, and the gradient dY = dL/dy:

        dV = P^T dY
        dP = dY V^T
        dS = P * (dP - rowsum(P * dP)) = P * (dY V^T - rowsum(dY * y))

    where * is elementwise. The code never computes P. With dO = dY / rowsum(E), it uses E instead:

        dV = E^T dO
        dS = E * (dO V^T - rowsum(dO * y))

    The subtraction is part of the matrix product, [dO, -rowsum(dO * y)] [V, 1]^T, because MLX's broadcast subtraction
    is slow on a CPU. dQ = scale dS K and dK = scale dS^T Q; the code applies this scale to [dO, -rowsum(dO * y)].
    """

    @mx.custom_function
    def attend(q, k, v):
        outs, sums, exps = [], [], []
        for first, end in spans:
            mask = causal_mask(end, mx.arange(first, end))
            exp, total = _exp_scores(q[:, :, first:end], k[:, :, :end], mask, scale)
            outs.append(_t(exp) @ v[:, :, :end] / total)
            exps.append(exp)
            sums.append(total)
        return mx.concatenate(outs, axis=2).astype(q.dtype), mx.concatenate(sums, axis=2), *exps

    @attend.vjp
    def gradients(primals, cotangents, outputs):
        (q, k, v), (out, sums, *exps) = primals, outputs
        dout = cotangents[0] / sums
        rows = (dout * out).sum(axis=-1, keepdims=True)
        dout_rows = mx.concatenate([dout, -rows], axis=-1).astype(q.dtype) * scale
        v_ones = mx.concatenate([v, mx.ones_like(rows).astype(v.dtype)], axis=-1)
        dout = dout.astype(q.dtype)
        dqs, dk, dv = [], None, None
        # The last span comes first, because it uses all keys. Each earlier span adds to the front of dK and dV.
        for (first, end), exp in reversed(list(zip(spans, exps, strict=True))):
            dscores = exp * (v_ones[:, :, :end] @ _t(dout_rows[:, :, first:end]))
            dqs.append(_t(dscores) @ k[:, :, :end])
            dk = _add_front(dk, dscores @ q[:, :, first:end])
            dv = _add_front(dv, exp @ dout[:, :, first:end])
        return mx.concatenate(dqs[::-1], axis=2), dk, dv

    return attend


def _exp_scores(q: mx.array, k: mx.array, mask: mx.array, scale: float) -> tuple[mx.array, mx.array]:
    """Returns exp(scale * (scores - max)) transposed, (B, H, S, T), and its sums over the keys, (B, H, T, 1).

    The order of operations is for speed on a CPU, where MLX compiles a chain of elementwise operations with a broadcast
    into one slow strided loop. Therefore

    - the scores are transposed, so that the maximum and the sum reduce over axis -2, whole rows at a time;
    - the exponentials are not divided by their sums, which would be a broadcast;
    - strided views replace the broadcasts of the mask and of the maximum;
    - the reshape before exp keeps MLX from fusing the subtraction with exp.
    """
    scores = (k @ _t(q)).astype(mx.float32)
    B, H, S, T = scores.shape
    scores = scores + mx.as_strided(mask, (B, H, S, T), (0, 0, T, 1))
    highest = mx.as_strided(mx.max(scores, axis=-2), (B * H, S, T), (T, 0, 1))
    scores = (scores.reshape(B * H, S, T) - highest).reshape(B, H, S, T)
    exp = mx.exp(scores * scale)
    return exp.astype(q.dtype), mx.sum(exp, axis=-2)[..., None]


def _t(x: mx.array) -> mx.array:
    """Swaps the last two axes."""
    return x.swapaxes(-1, -2)


def _add_front(total: mx.array | None, x: mx.array) -> mx.array:
    """Adds x (B, H, S, D) to the first S positions of `total`. None stands for an empty total."""
    if total is None:
        return x
    end = x.shape[2]
    return mx.concatenate([total[:, :, :end] + x, total[:, :, end:]], axis=2)


KERNELS = {"fused": fused, "padded": padded, "blocks": blocks}
