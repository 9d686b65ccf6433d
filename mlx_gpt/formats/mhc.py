"""Files of the residual streams of nanochat-rs-ternary (manifold-constrained hyper-connections, mHC).

The residual stream of that system has two copies. Each attention and each feed-forward network has a unit of nine
numbers, which says how it reads and writes the copies. The copies start equal. If the numbers of a unit are equal for
both copies, they stay equal, and the unit is an ordinary residual connection whose output is multiplied by one gain:

    gain = 2 sigmoid(post_logits + post_bias)

Reading multiplies the norm's input by a constant, which the norm removes except for its epsilon.

    type   field
    u32    magic, 0x6D484321
    u32    version, 1 or 2
    u32    number of units: two for each layer, attention first
    u32    number of streams, 2
           the units: alpha_logit, pre_logits (2), pre_bias (2), post_logits (2), post_bias (2), float32

All numbers are little-endian.
"""

import struct
from pathlib import Path

import numpy as np

from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic

MAGIC, VERSION, STREAMS = 0x6D484321, 2, 2
HEAD = struct.Struct("<4I")
UNIT = np.dtype([("alpha", "<f4"), *((name, "<f4", 2) for name in ("pre", "pre_bias", "post", "post_bias"))])
MAX_ALPHA = 20.0


def read_gains(path: Path, num_layers: int) -> np.ndarray:
    """Reads the gain of the attention and of the feed-forward network of each layer, (num_layers, 2) float64.

    Raises:
        UserError: There is no such file.
        BadFile: The file is corrupt, is for another number of layers or streams, or has a unit that is not an ordinary
            residual connection.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    expected = HEAD.size + 2 * num_layers * UNIT.itemsize
    with open(path, "rb") as file:
        data = file.read(expected + 1)
    if len(data) < HEAD.size or data[:4] != struct.pack("<I", MAGIC):
        raise BadFile(f"{path}: is not an mHC file; give the one that belongs to the model")
    _, version, count, streams = HEAD.unpack_from(data)
    if version not in (1, VERSION) or streams != STREAMS:
        raise BadFile(
            f"{path}: has version {version} and {streams} streams; only versions 1 and 2 with {STREAMS} streams are "
            "read, give another file"
        )
    if count != 2 * num_layers or len(data) != expected:
        raise BadFile(
            f"{path}: has {count} units in {path.stat().st_size:,} bytes; a model of {num_layers} layers has "
            f"{2 * num_layers} units in {expected:,} bytes, give the file that belongs to the model"
        )
    units = np.frombuffer(data, UNIT, offset=HEAD.size)
    for index, unit in enumerate(units):
        part = ("attention", "feed-forward")[index % 2]
        _require_ordinary(path, unit, f"unit {index} ({part} of layer {index // 2})")
    post = units["post"][:, 0].astype(np.float64) + units["post_bias"][:, 0]
    return (2 / (1 + np.exp(-post))).reshape(num_layers, 2)


def _require_ordinary(path: Path, unit: np.void, name: str) -> None:
    """Raises BadFile unless the numbers of a unit are allowed and equal for both streams."""
    numbers = np.concatenate([np.atleast_1d(unit[field]) for field in UNIT.names])
    if not np.isfinite(numbers).all() or abs(unit["alpha"]) > MAX_ALPHA:
        raise BadFile(
            f"{path}: {name} has a number that is not finite, or an alpha_logit beyond {MAX_ALPHA:g}; the file is "
            "corrupt, export it again"
        )
    for part in ("pre", "post"):
        first, second = unit[part] + unit[f"{part}_bias"]
        if first != second:
            raise BadFile(
                f"{path}: {name} has {part}_logits + {part}_bias of {first:g} and {second:g}; only units that are "
                "equal for both streams are supported, no ordinary residual connection represents this one"
            )


def write_units(path: Path, num_layers: int) -> None:
    """Writes units that are residual connections with the gain 1: all of their numbers are 0."""
    head = HEAD.pack(MAGIC, VERSION, 2 * num_layers, STREAMS)
    write_atomic(path, [head, bytes(2 * num_layers * UNIT.itemsize)])
