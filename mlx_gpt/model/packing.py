"""Ternary matrices of a whole network: their trits and scales, and the network with packed matrices."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.ternary import dequantize, pack, quantize, unpack

PACKED = "ternary-packed"


def trits_of(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, mx.array, mx.array]]:
    """Yields the trits and the scales of each ternary matrix as the network computes with them.

    Args:
        config: The network. Without ternary layers, nothing is yielded.
        weights: Its weights by name, float32 or packed.

    Yields:
        The name of the matrix, such as "layers.0.attn.wq.weight", its trits (R, C), and its scales, see quantize().
    """
    packed = config.linear == PACKED
    for name in ternary_names(config, weights):
        stem = name.removesuffix("weight")
        if packed:
            yield name, unpack(mx.array(weights[f"{stem}codes"])), mx.array(weights[f"{stem}scales"])
        else:
            yield name, *quantize(mx.array(weights[name]), config.ternary_group)


def ternary_names(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the ternary matrices, which are linear layers of the blocks, sorted."""
    if config.linear == PACKED:
        return sorted(f"{name.removesuffix('codes')}weight" for name in weights if name.endswith(".codes"))
    specs = GPT.specs(config, 1) if config.linear == "ternary" else {}  # the vocabulary has no part in the blocks
    matrices = [name for name, weight in specs.items() if weight.float32 and weight.role in ("matrix", "matrices")]
    return sorted(name for name in matrices if name in weights)


def summary(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, float | str] | None:
    """Describes the ternary matrices of a network.

    Args:
        config: The network.
        weights: Its weights by name, float32 or packed.

    Returns:
        `group`, the setting model.ternary_group; `bits_per_weight` as stored, scales included; `zeros`, the share of
        weights that are 0; the number of `scales`, `min_scale` and `max_scale`. None without ternary matrices.
    """
    found = list(trits_of(config, weights))
    if not found:
        return None
    stems = tuple(name.removesuffix("weight") for name, *_ in found)
    stored = sum(w.nbytes for name, w in weights.items() if name.startswith(stems))
    count = sum(trits.size for _, trits, _ in found)
    return {
        "group": config.ternary_group,
        "bits_per_weight": 8 * stored / count,
        "zeros": sum((trits == 0).sum().item() for _, trits, _ in found) / count,
        "scales": sum(scales.size for *_, scales in found),
        "min_scale": min(scales.min().item() for *_, scales in found),
        "max_scale": max(scales.max().item() for *_, scales in found),
    }


def is_ternary(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether the rows of every matrix of the blocks have few absolute values, as those of exported ternary networks.

    A row of a ternary matrix has at most one scale for every 64 weights, and zeros.
    """
    matrices = [w for name, w in weights.items() if name.startswith("layers.") and w.ndim == 2]
    return bool(matrices) and all(len(np.unique(np.abs(w[0]))) <= 1 + -(-w.shape[1] // 64) for w in matrices)


def as_packed(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns the network with packed matrices, and its weights.

    Raises:
        UserError: The network has no ternary layers, or a width that cannot be packed.
    """
    if config.linear != "ternary":
        raise UserError(
            f"only a network with model.linear=ternary can be packed; this one has model.linear={config.linear}"
        )
    found = dict(weights)
    for name, trits, scales in trits_of(config, weights):
        stem = name.removesuffix("weight")
        del found[name]
        found |= {f"{stem}codes": np.array(pack(trits)), f"{stem}scales": np.array(scales)}
    return dataclasses.replace(config, linear=PACKED), dict(sorted(found.items()))


def as_dense(config: ModelConfig, weights: Mapping[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns the network with dense matrices that hold the values of its ternary ones, and its weights.

    A network without ternary layers, or with `model.ternary_norm`, is returned as it is. The result computes the same
    function if `model.ternary_activations` is "float".
    """
    if config.linear not in ("ternary", PACKED) or config.ternary_norm:
        return config, dict(weights)
    found = {name: w for name, w in weights.items() if not name.endswith((".codes", ".scales"))}
    found |= {name: np.array(dequantize(trits, scales)) for name, trits, scales in trits_of(config, weights)}
    plain = {"linear": "dense", "ternary_group": "tensor", "ternary_activations": "float"}
    return dataclasses.replace(config, **plain), dict(sorted(found.items()))
