"""Kernels of causal attention. All of them compute the same function; which is fastest depends on the device.

Shapes: B batch, T time, S keys, H heads, D head_dim.
"""

from collections.abc import Callable
from functools import partial

from mlx_gpt.device.mlx import mx, on_gpu
from mlx_gpt.model.positions import causal_mask

# Head widths with fused kernels, forward and backward, in MLX's Metal backend. 32 and 48 have none.
FUSED_HEAD_DIMS = (64, 72, 80, 96, 128, 192, 256)
# Maps queries, keys and values (B, H, T, D) and the scale of the scores to (B, H, T, D).
Attend = Callable[[mx.array, mx.array, mx.array, float], mx.array]


def make_attend(name: str = "auto", query_blocks: int = 4) -> Attend:
    """The attention function of a row of KERNELS.

    "auto" is `blocks` on a CPU, where it is the fastest, and `fused` on a GPU, where nothing was measured.
    """
    return partial(KERNELS[kernel_of(name)], query_blocks=query_blocks)


def kernel_of(name: str) -> str:
    """The row of KERNELS that `speed.attention` names."""
    return ("fused" if on_gpu() else "blocks") if name == "auto" else name


def attend_cached(q: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Attention of new queries over cached keys and values.

    Args:
        q: (B, H, T, D).
        keys: (B, H, S, D).
        values: (B, H, S, D).
        scale: Factor of the scores.
        mask: (B, 1, S, T) or (S, T), added to the transposed scores.

    Returns:
        (B, H, T, D).
    """
    if on_gpu():
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=_t(mask).astype(q.dtype))
    scores = keys @ _t(q) + mask  # (B, H, S, T)
    exp = mx.exp((scores - mx.max(scores, axis=-2, keepdims=True)) * scale)
    return _t(exp) @ values / _t(mx.sum(exp, axis=-2, keepdims=True))


def fused(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 1) -> mx.array:
    """MLX's own attention: one kernel where the device has one for this head width, else plain operations."""
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")


def padded(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 1) -> mx.array:
    """fused() with heads padded with zeros to a width that has a kernel. Zeros change no score."""
    D = q.shape[-1]
    width = next((d for d in FUSED_HEAD_DIMS if d >= D), D)
    missing = [(0, 0)] * 3 + [(0, width - D)]
    return fused(*(mx.pad(x, missing) for x in (q, k, v)), scale)[..., :D]


def blocks(q: mx.array, k: mx.array, v: mx.array, scale: float, query_blocks: int = 4) -> mx.array:
    """Attention by blocks of queries, each against the keys up to the block's end.

    With T = 8 and four blocks, the queries 0-1, 2-3, 4-5 and 6-7 meet the keys 0-1, 0-3, 0-5 and 0-7: 2 x (2 + 4 + 6
    + 8) = 40 of 64 scores, five eighths.
    """
    T = q.shape[2]
    ends = [T * i // min(query_blocks, T) for i in range(min(query_blocks, T) + 1)]
    return _attend_by_blocks(scale, list(zip(ends, ends[1:], strict=False)))(q, k, v)[0]


def _attend_by_blocks(scale: float, spans: list[tuple[int, int]]):
    """Attention over spans of queries, with a gradient of its own.

    Outputs are y (B, H, T, D), the sums of the exponentials (B, H, T, 1), and the exponentials of each span, which the
    gradient needs.

    For one row of scores s, E = exp(s - max s), P = E / sum(E) and y = P V, the gradient of a loss with dY = dL/dy is

        dV = P^T dY
        dP = dY V^T
        ds = P (dP - rowsum(P dP)) = P (dY V^T - rowsum(dY y))

    With dO = dY / sum(E), E takes the place of P, and P is never computed. rowsum(dO y) enters the product with V as a
    further column: [dO, -rowsum(dO y)] [V, 1]^T = dO V^T - rowsum(dO y). This avoids a broadcast subtraction.
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
        # From the last span, whose keys are all keys, to the first: each adds to the front of dK and dV.
        for (first, end), exp in reversed(list(zip(spans, exps, strict=True))):
            dscores = exp * (v_ones[:, :, :end] @ _t(dout_rows[:, :, first:end]))
            dqs.append(_t(dscores) @ k[:, :, :end])
            dk = _add_front(dk, dscores @ q[:, :, first:end])
            dv = _add_front(dv, exp @ dout[:, :, first:end])
        return mx.concatenate(dqs[::-1], axis=2), dk, dv

    return attend


def _exp_scores(q: mx.array, k: mx.array, mask: mx.array, scale: float) -> tuple[mx.array, mx.array]:
    """exp(scale (scores - max)), (B, H, S, T), and its sums over the keys, (B, H, T, 1).

    On a CPU, MLX fuses elementwise operations that broadcast into slow strided loops. The scores are transposed, so
    that the maximum and the sum reduce over rows; they are not normalized, which would broadcast the sum. Strided views
    replace the broadcasts of the mask and the maximum. The reshape keeps the subtraction out of the kernel of exp.
    """
    scores = (k @ _t(q)).astype(mx.float32)
    B, H, S, T = scores.shape
    scores = scores + mx.as_strided(mask, (B, H, S, T), (0, 0, T, 1))
    highest = mx.as_strided(mx.max(scores, axis=-2), (B * H, S, T), (T, 0, 1))
    scores = (scores.reshape(B * H, S, T) - highest).reshape(B, H, S, T)
    exp = mx.exp(scores * scale)
    return exp.astype(q.dtype), mx.sum(exp, axis=-2)[..., None]


def _t(x: mx.array) -> mx.array:
    return x.swapaxes(-1, -2)


def _add_front(total: mx.array | None, x: mx.array) -> mx.array:
    """Adds x (B, H, S, D) to the first S positions of `total`."""
    if total is None:
        return x
    end = x.shape[2]
    return mx.concatenate([total[:, :, :end] + x, total[:, :, end:]], axis=2)


KERNELS = {"fused": fused, "padded": padded, "blocks": blocks}
