"""Blocks of ternary weights as ggml's loops fill them, one weight at a time."""

import numpy as np

from mlx_gpt.formats.gguf_types import TYPES
from mlx_gpt.formats.ternary import Ternary


def block_of(kind, d, trits) -> bytes:
    """One block, as the loops of ggml fill it."""
    d = np.float16(d).tobytes()
    if kind == "Q4_0":
        return d + bytes(trits[m] + 8 | (trits[16 + m] + 8) << 4 for m in range(16))
    if kind == "Q2_0":
        return d + bytes(sum((trits[4 * m + n] + 1) << 2 * n for n in range(4)) for m in range(16))
    if kind == "TQ2_0":
        places = [(h, m) for h in (0, 128) for m in range(32)]
        return bytes(sum((trits[h + m + 32 * n] + 1) << 2 * n for n in range(4)) for h, m in places) + d
    data = []
    for first, count, run in ((0, 5, 32), (160, 5, 16), (240, 4, 4)):
        for m in range(run):
            q = 0
            for n in range(count):
                q = q * 3 + trits[first + n * run + m] + 1
            q *= 3 ** (5 - count)
            data.append(-(-q * 256 // 243))
    return bytes(data) + d


def rows_of(kind, blocks=3, seed=0):
    """A matrix of two rows of blocks with different scales, and its bytes."""
    draw, (_, size, _) = np.random.default_rng(seed), TYPES[kind]
    trits = draw.integers(-1, 2, (2, blocks * size)).astype(np.int8)
    scales = draw.uniform(0.01, 2, (2, blocks)).astype(np.float16).astype(np.float32)
    data = b"".join(
        block_of(kind, scales[r, b], trits[r, b * size : (b + 1) * size].tolist())
        for r in range(2)
        for b in range(blocks)
    )
    return Ternary(trits=trits, scales=scales), data
