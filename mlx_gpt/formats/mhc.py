"""Files of the residual streams of nanochat-rs-ternary (manifold-constrained hyper-connections, mHC).

The residual stream of that system has two or four copies. Each attention and each feed-forward network has a unit of
numbers, which say how it mixes, reads and writes the copies, see model/mhc.py.

The copies start equal. If the numbers of every unit are equal for all copies, they stay equal, and each unit is an
ordinary residual connection whose output is multiplied by one gain:

    gain = 2 sigmoid(post_logits + post_bias)

Reading multiplies the norm's input by a constant, which the norm removes except for its epsilon.

    type   field
    u32    magic, 0x6D484321
    u32    version, 1 or 2
    u32    number of units: two for each layer, attention first
    u32    number of streams N, 2 or 4
           the units: mix_logits (1 or 24), pre_logits (N), pre_bias (N), post_logits (N), post_bias (N), float32

All numbers are little-endian. Only the sums of logits and biases matter; mlxgpt writes biases of 0.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.parse import reading

MAGIC, VERSION = 0x6D484321, 2
HEAD = struct.Struct("<4I")
MIXES = {2: 1, 4: 24}  # number of logits of the mixing matrix, by number of streams
MAX_ALPHA = 20.0  # largest absolute value of the one logit of two streams
PARTS = ("attn_residual", "mlp_residual")  # mlxgpt's names of the units of a layer


class Units(NamedTuple):
    """The units of a network, in float32. U is their number, two for each layer, attention first.

    Attributes:
        mix: Logits of the mixing matrices, (U, 1) or (U, 24).
        pre, post: Logits of reading and of writing, (U, N).
    """

    mix: np.ndarray
    pre: np.ndarray
    post: np.ndarray


def ordinary(num_layers: int) -> Units:
    """Units of two streams that are residual connections with the gain 1: all of their logits are 0."""
    return Units(*(np.zeros((2 * num_layers, width), np.float32) for width in (MIXES[2], 2, 2)))


def units_of(weights: Mapping[str, np.ndarray], num_layers: int) -> Units:
    """The units in the weights of a checkpoint with `model.residual=mhc`."""
    names = [f"layers.{layer}.{part}" for layer in range(num_layers) for part in PARTS]
    return Units(*(np.stack([weights[f"{name}.{field}"] for name in names]) for field in Units._fields))


def weights_of(units: Units) -> dict[str, np.ndarray]:
    """The weights of a checkpoint with `model.residual=mhc` that hold these units."""
    names = [f"layers.{layer}.{part}" for layer in range(len(units.mix) // 2) for part in PARTS]
    rows = {field: zip(names, getattr(units, field), strict=True) for field in Units._fields}
    return {f"{name}.{field}": row for field, pairs in rows.items() for name, row in pairs}


def gains(units: Units) -> np.ndarray | None:
    """The gains of units that are ordinary residual connections, (num_layers, 2) float64: attention first.

    Returns:
        None if a unit is not one, because its numbers are not equal for all streams.
    """
    if any((logits != logits[:, :1]).any() for logits in (units.pre, units.post)):
        return None
    return (2 / (1 + np.exp(-units.post[:, 0].astype(np.float64)))).reshape(-1, len(PARTS))


def read_units(path: Path, num_layers: int, num_streams: int) -> Units:
    """Reads the units of a model of `num_layers` layers and `num_streams` streams.

    Raises:
        UserError: There is no such file.
        BadFile: The file is corrupt, or is for another number of layers or streams.
    """
    unit = _layout(num_streams)
    expected = HEAD.size + 2 * num_layers * unit.itemsize
    with reading(path) as file:
        data = file.read(expected + 1)
    if len(data) < HEAD.size or data[:4] != struct.pack("<I", MAGIC):
        raise BadFile(f"{path}: is not an mHC file; give the one that belongs to the model")
    _, version, count, streams = HEAD.unpack_from(data)
    if version not in (1, VERSION) or streams != num_streams:
        raise BadFile(
            f"{path}: has version {version} and {streams} streams; the model has {num_streams} streams, and only "
            "versions 1 and 2 are read, give the file that belongs to the model"
        )
    if count != 2 * num_layers or len(data) != expected:
        raise BadFile(
            f"{path}: has {count} units in {path.stat().st_size:,} bytes; a model of {num_layers} layers has "
            f"{2 * num_layers} units in {expected:,} bytes, give the file that belongs to the model"
        )
    found = np.frombuffer(data, unit, offset=HEAD.size)
    for index, row in enumerate(found):
        numbers = np.concatenate([row[field] for field in unit.names])
        if not np.isfinite(numbers).all() or _is_extreme(row["mix"]):
            raise BadFile(
                f"{path}: unit {index} ({('attention', 'feed-forward')[index % 2]} of layer {index // 2}) has a number "
                f"that is not finite, or an alpha_logit beyond {MAX_ALPHA:g}; the file is corrupt, export it again"
            )
    return Units(found["mix"], found["pre"] + found["pre_bias"], found["post"] + found["post_bias"])


def write_units(path: Path, units: Units) -> None:
    """Writes units.

    Raises:
        UserError: A logit of two streams is beyond what the format allows, or the file cannot be written.
        OutOfRoom: The disk is full.
    """
    if any(map(_is_extreme, units.mix)):
        raise UserError(
            f"{path}: a mixing logit of the network is {np.abs(units.mix).max():g}, but nanochat-rs-ternary reads at "
            f"most {MAX_ALPHA:g}; train further with a lower --lr"
        )
    count, num_streams = units.pre.shape
    data = np.zeros(count, _layout(num_streams))
    for field in Units._fields:
        data[field] = getattr(units, field)
    write_atomic(path, [HEAD.pack(MAGIC, VERSION, count, num_streams), data.tobytes()])


def _layout(num_streams: int) -> np.dtype:
    """The numbers of a unit in a file."""
    streams = [(name, "<f4", (num_streams,)) for name in ("pre", "pre_bias", "post", "post_bias")]
    return np.dtype([("mix", "<f4", (MIXES[num_streams],)), *streams])


def _is_extreme(mix: np.ndarray) -> bool:
    """Whether nanochat-rs-ternary refuses the mixing logits of a unit as too large."""
    return len(mix) == MIXES[2] and abs(mix[0]) > MAX_ALPHA
