"""The tensor types of GGUF files: how they store float32 tensors and ternary matrices.

A block type stores a row in blocks of some elements, with a float16 scale d in each block. Q8_0 rounds float32
elements to 8 bits. The others store a ternary matrix exactly: each block has codes of the trits, and the scale of the
group that contains it.

    type   elements  bytes  layout of a block, where the code of a trit t is t + 1, and t + 8 in Q4_0
    Q8_0   32        34     d; the elements, int8
    TQ1_0  256       54     trits in base 3, five in a byte (the last 16 elements four in a byte); d
    TQ2_0  256       66     byte 32 h + m has element 128 h + 32 n + m at bits 2 n; d
    Q2_0   64        18     d; four consecutive elements in a byte, the first in the lowest bits
    Q4_0   32        18     d; byte m has element m in the low half, and 16 + m in the high half

Source: ggml-quants.c of ggml.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from mlx_gpt.checkpoint.container import Entry, read_array
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats.ternary import Ternary

# The tensor types that can be read and written: number, elements of a block, bytes of a block.
TYPES = {
    **{"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "BF16": (30, 1, 2)},
    **{"TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "Q2_0": (42, 64, 18), "Q4_0": (2, 32, 18)},
}
# The names of other tensor types, for messages.
OTHERS = {
    **{3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K"},
    **{14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 39: "MXFP4"},
}
NAMES = {number: name for name, (number, _, _) in TYPES.items()}
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
# TQ1_0 has three parts with `count` trits in a byte, whose elements are `run` apart: first element, count, run.
BASE_3 = ((0, 5, 32), (160, 5, 16), (240, 4, 4))


@dataclass(frozen=True, slots=True)
class Codes:
    """How a type stores the codes of N blocks.

    Attributes:
        zero: The code of the trit 0.
        scale_first: Whether the scale is before the codes.
        pack: Codes (N, elements) uint8 -> bytes (N, bytes of a block - 2).
        unpack: The inverse of pack.
    """

    zero: int
    scale_first: bool
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


def in_bits(bits: int, run: int, zero: int, scale_first: bool) -> Codes:
    """Codes of some bits each. The elements of a byte are `run` apart, the first one in the lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]

    def pack(codes: np.ndarray) -> np.ndarray:
        parts = codes.reshape(len(codes), -1, len(shifts), run) << shifts
        return np.bitwise_or.reduce(parts, axis=2).reshape(len(codes), -1)

    def unpack(data: np.ndarray) -> np.ndarray:
        parts = data.reshape(len(data), -1, 1, run) >> shifts
        return (parts & ((1 << bits) - 1)).reshape(len(data), -1)

    return Codes(zero=zero, scale_first=scale_first, pack=pack, unpack=unpack)


def _pack_base_3(codes: np.ndarray) -> np.ndarray:
    """A byte is ceil(256 q / 243), where the codes are the digits of q in base 3. An absent fifth digit is 0."""
    parts = []
    for first, count, run in BASE_3:
        digits = codes[:, first : first + count * run].reshape(len(codes), count, run).astype(np.uint32)
        q = (digits * np.array([81, 27, 9, 3, 1], np.uint32)[:count, None]).sum(axis=1)
        parts.append(((256 * q + 242) // 243).astype(np.uint8))
    return np.concatenate(parts, axis=1)


def _unpack_base_3(data: np.ndarray) -> np.ndarray:
    parts, place = [], 0
    for _, count, run in BASE_3:
        q = data[:, None, place : place + run] * np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]  # modulo 256
        parts.append((q.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1))
        place += run
    return np.concatenate(parts, axis=1)


# The types of ternary matrices.
TERNARY = {
    "TQ2_0": in_bits(2, 32, zero=1, scale_first=False),
    "TQ1_0": Codes(zero=1, scale_first=False, pack=_pack_base_3, unpack=_unpack_base_3),
    "Q2_0": in_bits(2, 1, zero=1, scale_first=True),
    "Q4_0": in_bits(4, 16, zero=8, scale_first=True),
}


def byte_length(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor. Its innermost dimension is a multiple of the elements of a block."""
    _, elements, size = TYPES[kind]
    return math.prod(shape) // elements * size


def encoded(name: str, tensor: np.ndarray | Ternary, kind: str) -> bytes:
    """The bytes of a tensor.

    Args:
        name: Its name, for messages.
        tensor: A float32 array for F32, F16 and Q8_0, a ternary matrix for the types in TERNARY. Its innermost
            dimension is a multiple of the elements of a block.
        kind: The type.

    Raises:
        UserError: A value is too large for the type. The groups of the matrix are smaller than a block, or float16
            cannot hold its scales exactly.
    """
    if isinstance(tensor, Ternary):
        return _encoded_ternary(name, tensor, kind)
    if kind == "F32":
        return tensor.astype("<f4", copy=False).tobytes()
    with np.errstate(over="ignore"):
        if kind == "F16":
            data = scale = tensor.astype("<f2")
        else:
            data, scale = _quantized(tensor)
    if not np.isfinite(scale).all():
        raise UserError(f"{name} has values up to {np.abs(tensor).max():g}, too large for {kind}; choose F32")
    return data.tobytes()


def decoded(file: BinaryIO, entry: Entry) -> np.ndarray:
    """Reads a tensor of type F32, F16, BF16 or Q8_0 at the position of the file, and converts it to float32."""
    count = math.prod(entry.shape)
    if entry.dtype == "Q8_0":
        blocks = read_array(file, Q8_0, count // 32)
        return (blocks["q"] * blocks["d"].astype(np.float32)[:, None]).reshape(entry.shape)
    data = read_array(file, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.dtype], count)
    if entry.dtype == "BF16":  # a bfloat16 is the upper 16 bits of a float32
        data = (data.astype("<u4") << 16).view("<f4")
    return data.astype(np.float32, copy=False).reshape(entry.shape)


def decoded_ternary(file: BinaryIO, name: str, entry: Entry) -> Ternary:
    """Reads a matrix of a type in TERNARY at the position of the file.

    Raises:
        BadFile: A weight is not -1, 0 or 1 times the scale.
    """
    codes, (_, elements, size) = TERNARY[entry.dtype], TYPES[entry.dtype]
    blocks = read_array(file, np.uint8, entry.end - entry.first).reshape(-1, size)
    scales, data = (blocks[:, :2], blocks[:, 2:]) if codes.scale_first else (blocks[:, -2:], blocks[:, :-2])
    trits = codes.unpack(data).astype(np.int8) - np.int8(codes.zero)
    if trits.size and not -1 <= trits.min() <= trits.max() <= 1:
        raise BadFile(
            f"{file.name}: {name} is {entry.dtype} with weights other than -1, 0 and 1 times the scale of a block; "
            "only ternary weights are read from this type, give a file of type F32, F16 or Q8_0"
        )
    scales = np.ascontiguousarray(scales).view("<f2").astype(np.float32)
    rows, columns = entry.shape
    return Ternary(trits=trits.reshape(rows, columns), scales=scales.reshape(rows, columns // elements))


def _encoded_ternary(name: str, matrix: Ternary, kind: str) -> bytes:
    codes, (_, elements, _) = TERNARY[kind], TYPES[kind]
    if matrix.group_size % elements:
        raise UserError(f"{name} has groups of {matrix.group_size} weights, but {kind} has one scale for {elements}")
    scales = matrix.scales_of(elements).reshape(-1, 1)
    with np.errstate(over="ignore"):
        halves = scales.astype("<f2")
    if not np.array_equal(halves.astype(np.float32), scales):
        raise UserError(
            f"{name} has scales that float16 cannot hold exactly, and {kind} has no others; give --gguf-type F32"
        )
    trits = matrix.trits.reshape(-1, elements)
    parts = [halves.view(np.uint8), codes.pack((trits + np.int8(codes.zero)).astype(np.uint8))]
    return np.concatenate(parts if codes.scale_first else parts[::-1], axis=1).tobytes()


def _quantized(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a tensor to Q8_0: for each 32 elements x, a float16 scale d = max|x| / 127, and the int8 x / d.

    Halves are rounded away from zero, as ggml does.

    Returns:
        The blocks, (N / 32,) of d and q, and the scales.
    """
    x = tensor.reshape(-1, 32)
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > np.finfo(np.float32).tiny)
    scaled = x * inverse
    blocks = np.empty(len(x), Q8_0)
    blocks["d"] = scale[:, 0]
    blocks["q"] = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    return blocks, blocks["d"]
