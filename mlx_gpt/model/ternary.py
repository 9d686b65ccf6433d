"""Ternary weights: each weight of a matrix is -1, 0 or 1 (a trit) times a scale (arXiv:2402.17764).

A group of weights shares a scale: the whole matrix, a row, or a number of consecutive weights of a row. The scale is
the mean absolute weight of the group, rounded to float16, so that every file format can hold it exactly.

Shapes: R rows (outputs), C columns (inputs), G groups in a row.
"""

from collections.abc import Callable

from mlx_gpt.device.mlx import mx

TRITS_PER_BYTE = 4


def quantize(w: mx.array, group: str) -> tuple[mx.array, mx.array]:
    """Computes the trits and the scales of a matrix.

    Args:
        w: (..., R, C). Each matrix of a stack has its own groups.
        group: "tensor", "row", or the number of weights in a group, as a text. The number must divide C.

    Returns:
        trits: clip(round(w / scale), -1, 1), (..., R, C) float32, where round() rounds halves to even. A group whose
            scale is 0 has trits of 0.
        scales: (..., 1, 1) for "tensor", otherwise (..., R, G), float32 values that float16 can represent.
    """
    w = w.astype(mx.float32)
    if group == "tensor":
        scales = mx.mean(mx.abs(w), axis=(-2, -1), keepdims=True)
    else:
        scales = mx.mean(mx.abs(_grouped(w, group)), axis=-1)
    scales = scales.astype(mx.float16).astype(mx.float32)
    spread = spread_scales(scales, w.shape)
    trits = mx.clip(mx.round(w / mx.where(spread == 0, 1, spread)), -1, 1)
    return mx.where(spread == 0, 0, trits), scales


def dequantize(trits: mx.array, scales: mx.array) -> mx.array:
    """Returns trits times scales, (..., R, C) float32. The products are exact."""
    return trits.astype(mx.float32) * spread_scales(scales, trits.shape)


def spread_scales(scales: mx.array, shape: tuple[int, ...]) -> mx.array:
    """Returns the scale of each weight for a matrix of this shape: (..., 1, 1), (..., R, 1) or (..., R, C)."""
    groups = scales.shape[-1]
    return scales if groups == 1 else mx.repeat(scales, shape[-1] // groups, axis=-1)


def int8_rows(x: mx.array) -> mx.array:
    """Rounds each row of x (..., C) to 8 bits: 127 x / a is rounded to an integer, where a is the row's max |x|.

    Returns the rounded values in the units of x. A row of zeros stays zero.
    """
    x32 = x.astype(mx.float32)
    highest = mx.max(mx.abs(x32), axis=-1, keepdims=True)
    step = highest / 127
    return (mx.round(x32 * (127 / mx.maximum(highest, 1e-30))) * step).astype(x.dtype)


def pack(trits: mx.array) -> mx.array:
    """Returns trits + 1 in 2 bits each, four in a byte, the first one in the lowest bits: (..., R, C / 4) uint8."""
    quads = (trits + 1).astype(mx.uint8).reshape(*trits.shape[:-1], -1, TRITS_PER_BYTE)
    return (quads << _shifts()).sum(axis=-1).astype(mx.uint8)


def unpack(codes: mx.array) -> mx.array:
    """Returns the trits of pack(), (..., R, C) float32."""
    quads = (codes[..., None] >> _shifts()) & 3
    return quads.reshape(*codes.shape[:-1], -1).astype(mx.float32) - 1


def packed_shapes(shape: tuple[int, int], group: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the shapes of the codes and of the scales of a matrix (R, C)."""
    R, C = shape
    scales = {"tensor": (1, 1), "row": (R, 1)}.get(group) or (R, C // int(group))
    return (R, C // TRITS_PER_BYTE), scales


def two_bit_group(columns: int, groups: int) -> int:
    """Returns the largest group size of MLX's 2-bit matrices that divides a group of a row, or 0 if there is none."""
    return next((size for size in (128, 64, 32) if columns // groups % size == 0), 0)


def two_bit(trits: mx.array, scales: mx.array, size: int) -> tuple[mx.array, mx.array, mx.array]:
    """Returns a ternary matrix in the form of `mx.quantized_matmul` with 2 bits: a weight is scale * code + bias.

    Args:
        trits: (R, C).
        scales: As quantize() returns them.
        size: The group size, from two_bit_group().

    Returns:
        codes: trits + 1, sixteen in each element, low bits first: (R, C / 16) uint32.
        scales: The scale of every group of `size` weights, (R, C / size) float32.
        biases: The negative scales.
    """
    R, C = trits.shape
    scales = mx.broadcast_to(scales, (R, scales.shape[1]))
    scales = mx.repeat(scales, C // scales.shape[1] // size, axis=1)
    return pack(trits).view(mx.uint32), scales, -scales


def straight_through(function: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    """Returns a function with the values of `function` and the gradient of the identity (arXiv:1308.3432)."""
    estimator = mx.custom_function(function)
    estimator.vjp(lambda _primal, cotangent, _output: cotangent)
    return estimator


def _shifts() -> mx.array:
    """The lowest bits of the four trits in a byte."""
    return mx.arange(0, 8, 2, dtype=mx.uint8)


def _grouped(w: mx.array, group: str) -> mx.array:
    """Returns the weights as (..., R, G, C / G)."""
    size = w.shape[-1] if group == "row" else int(group)
    return w.reshape(*w.shape[:-1], -1, size)
