"""Quantizes weights to 8 or 4 bits, in the affine form of MLX's quantized layers."""

import numpy as np

from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

BITS = (8, 4)
GROUPS = (64, 32)  # allowed sizes of a group, which is a run of numbers in a row that share a scale and a bias


def quantize(weights: Tensors, bits: int) -> tuple[Tensors, Tensors, int]:
    """Quantizes every matrix whose rows divide into groups, but not the learned positions.

    Args:
        weights: float32 weights by name.
        bits: One of BITS.

    Returns:
        The weights as MLX's quantized layers hold them, the same weights dequantized to float32, and the group size.

    Raises:
        UserError: No matrix has rows that divide into groups.
    """
    widths = {w.shape[1] for name, w in weights.items() if _is_matrix(name, w)}
    group = next((g for g in GROUPS if any(width % g == 0 for width in widths)), None)
    if not group:
        raise UserError(
            f"--quantize {bits}: rows are {' and '.join(map(str, sorted(widths)))} numbers wide, and MLX needs a "
            f"multiple of {GROUPS[-1]}, as in all presets except model-xs; export without --quantize"
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
    return w.ndim == 2 and name != "wpe.weight"
