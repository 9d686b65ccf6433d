"""Weights in 8 or 4 bits, by MLX's own modes, for reading them faster; and what they stand for."""

import numpy as np

from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError

BITS = (8, 4)
GROUPS = (64, 32)  # neighbours that share a scale and an offset


def quantise(weights: Tensors, bits: int) -> tuple[Tensors, Tensors, int]:
    """The weights as MLX's quantised layers hold them, the float32 weights that these stand for, and the group size.

    Every matrix but the learned positions, if its rows are as wide as whole groups. Raises UserError if none is.
    """
    widths = {w.shape[1] for name, w in weights.items() if _is_read_whole(name, w)}
    group = next((g for g in GROUPS if any(width % g == 0 for width in widths)), None)
    if not group:
        raise UserError(
            f"--quantize {bits}: the rows are {' and '.join(map(str, sorted(widths)))} numbers wide, and MLX wants a "
            f"multiple of {GROUPS[-1]}, as all presets have but model-xs"
        )
    packed, meant = {}, {}
    for name, w in weights.items():
        packed[name] = meant[name] = w
        if _is_read_whole(name, w) and w.shape[1] % group == 0:
            parts = mx.quantize(mx.array(w), group_size=group, bits=bits)
            stem = name.removesuffix("weight")
            packed |= {stem + part: np.array(a) for part, a in zip(("weight", "scales", "biases"), parts, strict=True)}
            meant[name] = np.array(mx.dequantize(*parts, group_size=group, bits=bits))
    return packed, meant, group


def _is_read_whole(name: str, w: np.ndarray) -> bool:
    return w.ndim == 2 and name != "wpe.weight"
