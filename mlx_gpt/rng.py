"""Random numbers as a function of (seed, stream, index), without state.

No generator state is saved: a resumed run draws the same numbers as an uninterrupted one. The
generator hashes a counter with the 32-bit integer hash lowbias32 (https://nullprogram.com/blog/2018/07/31/). It is
plain uint32 arithmetic, so MLX fuses it into the surrounding kernels, and a compiled function can take the index as an
array and is traced once.
"""

import hashlib

import numpy as np

from mlx_gpt.device.mlx import mx

# The streams of a run. Numbers of different streams are independent.
INIT, WINDOWS, EPOCHS, DROPOUT = "init", "windows", "epochs", "dropout"
EVALUATION, SAMPLING = "evaluation", "sampling"


def key(seed: int, stream: str, index: int | mx.array = 0) -> mx.array:
    """Returns a key for `bits` and for MLX's own generators.

    Args:
        seed: the seed of the run.
        stream: the name of the stream.
        index: which key of the stream, for example the step. An array can be traced by mx.compile.

    Returns:
        The key, (2,) uint32.
    """
    first, second = (mx.array(word, dtype=mx.uint32) for word in _words(seed, stream))
    return mx.stack([first, second + mx.array(index).astype(mx.uint32)])


def host_key(seed: int, stream: str, index: int) -> np.ndarray:
    """Returns key(seed, stream, index) as a NumPy array, (2,) uint32, without using the device."""
    first, second = _words(seed, stream)
    return np.array([first, (second + index) % 2**32], dtype=np.uint32)


def host_bits(seed: int, stream: str, index: int, count: int) -> np.ndarray:
    """Returns bits(key(seed, stream, index), mx.arange(count)) as a NumPy array, (count,) uint32.

    It is computed on the host, so it does not wait for a device that is busy with a training step.
    """
    first, second = host_key(seed, stream, index)
    with np.errstate(over="ignore"):
        return _hash(_hash(np.arange(count, dtype=np.uint32) ^ first, np.uint32) + second, np.uint32)


def split(key: mx.array, count: int) -> mx.array:
    """Derives further keys, (count, 2) uint32, that are independent of each other and of `key`."""
    first = _hash(key[0] + mx.arange(1, count + 1).astype(mx.uint32))
    return mx.stack([first, mx.broadcast_to(key[1], (count,))], axis=1)


def bits(key: mx.array, counter: mx.array) -> mx.array:
    """Returns random uint32 numbers, one for each element of `counter` and of its shape: a function of both alone."""
    return _hash(_hash(counter.astype(mx.uint32) ^ key[0]) + key[1])


def dropout(x: mx.array, rate: float, key: mx.array, first_row: int = 0) -> mx.array:
    """Sets elements of x to zero with probability `rate` and divides the others by 1 - rate.

    The mask depends on the key and on the position of an element in the whole batch: row `first_row` + b, time t,
    channel c. A batch that is processed in parts, on other lanes or with gradient accumulation, therefore drops the
    same elements as the batch processed at once:

    >>> x, k = mx.ones((2, 2, 4)), key(0, DROPOUT, 3)
    >>> dropout(x, 0.5, k)
    array([[[0, 0, 2, 2],
            [0, 0, 0, 2]],
           [[2, 2, 0, 0],
            [2, 0, 2, 2]]], dtype=float32)
    >>> dropout(x[1:], 0.5, k, first_row=1)
    array([[[2, 2, 0, 0],
            [2, 0, 2, 2]]], dtype=float32)

    The counters are row * T + t for the B * T tokens and c for the C channels. An element is dropped where
    hash(bits[row * T + t] ^ bits[c]) < rate * 2^32. `bits` applies the hash twice; hashing tokens and channels
    separately leaves one hash for each of the B * T * C elements.

    Args:
        x: (B, T, C).
        rate: the probability of dropping an element, in [0, 1).
        key: (2,) uint32.
        first_row: the row of the whole batch that x[0] is.

    Returns:
        An array of the shape and type of x.
    """
    B, T, C = x.shape
    tokens = bits(key, mx.arange(first_row * T, (first_row + B) * T)).reshape(B, T, 1)
    channels = bits(key[::-1], mx.arange(C))  # the reversed key, so that equal counters give other bits
    keep = _hash(tokens ^ channels) >= mx.array(int(rate * 2**32), dtype=mx.uint32)
    return mx.where(keep, x * (1 / (1 - rate)), mx.zeros((), x.dtype))


def _words(seed: int, stream: str) -> tuple[int, int]:
    """Returns the first two 32-bit words of a SHA-256 of seed and stream."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])


def _hash(x, uint32=lambda constant: mx.array(constant, dtype=mx.uint32)):
    """Applies lowbias32 to each element of x, uint32. `uint32` makes a constant for MLX, or np.uint32 for NumPy."""
    x = (x ^ (x >> 16)) * uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * uint32(0x846CA68B)
    return x ^ (x >> 16)
