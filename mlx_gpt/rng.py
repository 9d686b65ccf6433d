"""Randomness as a function of (seed, stream, index): no hidden state, so nothing of it needs saving.

A resumed run draws what the unbroken run would have drawn. The generator is a counter through an integer hash
(lowbias32, https://nullprogram.com/blog/2018/07/31/): plain uint32 arithmetic that fuses into the kernels around it
and can be traced once with the index as an array.
"""

import hashlib

import numpy as np

from mlx_gpt.device.mlx import mx

# What a run draws: each stream is independent of the others.
INIT, WINDOWS, EPOCHS, DROPOUT = "init", "windows", "epochs", "dropout"
EVALUATION, SAMPLING = "evaluation", "sampling"


def key(seed: int, stream: str, index: int | mx.array = 0) -> mx.array:
    """A key, (2,) uint32, for MLX's own generators and for ours; `index` may be traced."""
    first, second = (mx.array(word, dtype=mx.uint32) for word in _words(seed, stream))
    return mx.stack([first, second + mx.array(index).astype(mx.uint32)])


def host_key(seed: int, stream: str, index: int) -> np.ndarray:
    """key() as NumPy has it, made without the device."""
    first, second = _words(seed, stream)
    return np.array([first, (second + index) % 2**32], dtype=np.uint32)


def host_bits(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """bits(key(seed, stream, index), arange(count)), (count,) uint32, without the device, which may be busy."""
    first, second = host_key(seed, stream, index)
    with np.errstate(over="ignore"):
        return _hash(_hash(np.arange(count, dtype=np.uint32) ^ first, np.uint32) + second, np.uint32)


def split(key: mx.array, count: int) -> mx.array:
    """Further keys, (count, 2), independent of each other and of the first."""
    first = _hash(key[0] + mx.arange(1, count + 1).astype(mx.uint32))
    return mx.stack([first, mx.broadcast_to(key[1], (count,))], axis=1)


def bits(key: mx.array, counter: mx.array) -> mx.array:
    """Uniform uint32, one for each element of `counter`."""
    return _hash(_hash(counter.astype(mx.uint32) ^ key[0]) + key[1])


def dropout(x: mx.array, rate: float, key: mx.array, first_row: int = 0) -> mx.array:
    """Drops elements of x (B, T, C) and scales the rest to keep the mean.

    The mask is a function of the key and of each element's place in the whole batch, whose row `first_row` is
    x[0]: a batch taken in parts drops exactly what the whole batch drops.
    """
    B, T, C = x.shape
    rows = bits(key, mx.arange(first_row * T, (first_row + B) * T)).reshape(B, T, 1)
    columns = bits(key[::-1], mx.arange(C))
    keep = _hash(rows ^ columns) >= mx.array(int(rate * 2**32), dtype=mx.uint32)
    return mx.where(keep, x * (1 / (1 - rate)), mx.zeros((), x.dtype))


def _words(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])


def _hash(x, uint32=lambda constant: mx.array(constant, dtype=mx.uint32)):
    x = (x ^ (x >> 16)) * uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * uint32(0x846CA68B)
    return x ^ (x >> 16)
