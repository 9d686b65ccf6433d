"""Quantizes weights to 8 or 4 bits, as MLX's quantized layers hold them.

The quantization is affine: each row of a matrix is divided into groups of consecutive elements, and each group has a
float32 scale and a float32 bias. An element w is stored as an integer q from 0 to 2^bits - 1, and w is about
scale * q + bias.
"""

import numpy as np

from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

BITS = (8, 4)
GROUPS = (64, 32)  # the group sizes that are tried, in elements


def quantize(weights: Tensors, bits: int) -> tuple[Tensors, Tensors, int]:
    """Quantizes every matrix whose row length is a multiple of the group size, except the learned positions.

    The group size is the first of GROUPS that divides the row length of at least one matrix. All other weights stay
    float32.

    Args:
        weights: float32 weights by name.
        bits: One of BITS.

    Returns:
        packed: The weights as MLX's quantized layers hold them. A quantized "x.weight" (rows, columns) becomes
            "x.weight" (rows, columns * bits / 32) uint32, "x.scales" and "x.biases" (rows, columns / group size).
        dequantized: The weights by their own names and with their own shapes. Quantized ones are rounded.
        group: The group size.

    Raises:
        UserError: No matrix has rows that divide into groups.
    """
    widths = {w.shape[1] for name, w in weights.items() if _is_matrix(name, w)}
    group = next((g for g in GROUPS if any(width % g == 0 for width in widths)), None)
    if not group:
        raise UserError(
            f"--quantize {bits}: the matrices have rows of {' and '.join(map(str, sorted(widths)))} elements, but MLX "
            f"needs a multiple of {GROUPS[-1]}, as in all presets except model-xs; export without --quantize"
        )
    packed, dequantized = {}, {}
    for name, w in weights.items():
        packed[name] = dequantized[name] = w
        if _is_matrix(name, w) and w.shape[1] % group == 0:
            parts = mx.quantize(mx.array(w), group_size=group, bits=bits)
            stem = name.removesuffix("weight")
            packed |= {stem + part: np.array(a) for part, a in zip(("weight", "scales", "biases"), parts, strict=True)}
            dequantized[name] = np.array(mx.dequantize(*parts, group_size=group, bits=bits))
    return packed, dequantized, group


def _is_matrix(name: str, w: np.ndarray) -> bool:
    """Whether a weight is a matrix other than the learned positions."""
    return w.ndim == 2 and name != "wpe.weight"
