"""Stateless random numbers: each is a function of (seed, stream, index).

A checkpoint therefore holds no generator state, and a resumed run draws the same numbers as an uninterrupted one.

The generator applies the 32-bit integer hash lowbias32 (https://nullprogram.com/blog/2018/07/31/) to a counter. The
hash is plain uint32 arithmetic, which MLX fuses into the surrounding kernels. A compiled function can take the index as
an array, so it is traced once and not once for each index.
"""

import hashlib

import numpy as np

from mlx_gpt.device.mlx import mx

# The streams: one for each purpose. Numbers of different streams are independent of each other.
INIT, WINDOWS, EPOCHS, DROPOUT = "init", "windows", "epochs", "dropout"
EVALUATION, SAMPLING, FIM = "evaluation", "sampling", "fim"
PROMPTS, ROLLOUTS = "prompts", "rollouts"


def key(seed: int, stream: str, index: int | mx.array = 0) -> mx.array:
    """Returns a key for `bits` and for the functions of mx.random.

    Args:
        seed: the seed of the run.
        stream: the name of the stream.
        index: the number of the key in the stream, for example the step. Inside mx.compile, pass an array: an int
            would be a constant of the graph.

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

    The numbers are computed on the host, so the call does not wait for a device that is busy with a training step.
    """
    first, second = host_key(seed, stream, index)
    with np.errstate(over="ignore"):
        return _hash(_hash(np.arange(count, dtype=np.uint32) ^ first, np.uint32) + second, np.uint32)


def split(key: mx.array, count: int) -> mx.array:
    """Derives `count` new keys, (count, 2) uint32, that are independent of each other and of `key`."""
    first = _hash(key[0] + mx.arange(1, count + 1).astype(mx.uint32))
    return mx.stack([first, mx.broadcast_to(key[1], (count,))], axis=1)


def bits(key: mx.array, counter: mx.array) -> mx.array:
    """Returns one random uint32 number for each element of `counter`, in an array of its shape.

    Each number depends only on `key` and on its element of `counter`.
    """
    return _hash(_hash(counter.astype(mx.uint32) ^ key[0]) + key[1])


def dropout(x: mx.array, rate: float, key: mx.array, first_row: int = 0) -> mx.array:
    """Sets elements of x to zero with probability `rate` and divides the others by 1 - rate.

    Whether the element x[b, t, c] is dropped depends on the key and on its position in the whole batch: row
    `first_row` + b, time t, channel c. A batch that is processed in parts (on several CPU streams, or with gradient
    accumulation) therefore drops the same elements as the batch processed at once:

    >>> x, k = mx.ones((2, 2, 4)), key(0, DROPOUT, 3)
    >>> dropout(x, 0.5, k)
    array([[[0, 0, 2, 2],
            [0, 0, 0, 2]],
           [[2, 2, 0, 0],
            [2, 0, 2, 2]]], dtype=float32)
    >>> dropout(x[1:], 0.5, k, first_row=1)
    array([[[2, 2, 0, 0],
            [2, 0, 2, 2]]], dtype=float32)

    Each of the B * T tokens gets random bits by the counter row * T + t, and each of the C channels by the counter c.
    An element is dropped if hash(token_bits ^ channel_bits) < rate * 2^32. This needs one hash for each of the
    B * T * C elements. Calling `bits` for each element would need two.

    Args:
        x: (B, T, C).
        rate: the probability of dropping an element, in [0, 1).
        key: (2,) uint32.
        first_row: the index of x[0] among the rows of the whole batch.

    Returns:
        An array of the shape and dtype of x.
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
    """Applies lowbias32 to each element of x, an array of uint32.

    `uint32` converts an int to a uint32 scalar of the library of x: the default for MLX, np.uint32 for NumPy.
    """
    x = (x ^ (x >> 16)) * uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * uint32(0x846CA68B)
    return x ^ (x >> 16)
