"""Ternary matrices in files of other programs.

Their trits and scales are those of the network's forward pass. Nothing is quantized again.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.packing import PACKED, trits_of
from mlx_gpt.model.ternary import pack

# The values of model.ternary_group, from the largest group to the smallest.
GROUPS = ("tensor", "row", "128", "64")


@dataclass(frozen=True, eq=False, slots=True)
class Ternary:
    """A ternary matrix with R rows, C columns and G groups in a row.

    Attributes:
        trits: -1, 0 or 1, (R, C) int8.
        scales: The scale of each C / G consecutive weights of a row, (R, G) float32.
    """

    trits: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(R, C)"""
        return self.trits.shape

    @property
    def group_size(self) -> int:
        """C / G, the number of weights that share a scale in a row."""
        return self.shape[1] // self.scales.shape[1]

    def scales_of(self, size: int) -> np.ndarray:
        """The scale of every `size` consecutive weights of a row, (R, C / size). A group must contain them all."""
        return np.repeat(self.scales, self.group_size // size, axis=1)

    def fits(self, group: str) -> bool:
        """Whether all weights of a group, a value of model.ternary_group, have the same scale."""
        if not group.isdigit():
            first = self.scales[:1, :1] if group == "tensor" else self.scales[:, :1]
            return bool((self.scales == first).all())
        size = int(group)
        if self.shape[1] % size:
            return False
        if self.group_size % size == 0:
            return True
        groups = self.scales.reshape(len(self.scales), self.shape[1] // size, -1)
        return size % self.group_size == 0 and bool((groups == groups[..., :1]).all())

    def scales_by(self, group: str) -> np.ndarray:
        """The scales in the shape that model/ternary.py has for a group that fits."""
        if group == "tensor":
            return self.scales[:1, :1]
        if group == "row":
            return self.scales[:, :1]
        if self.group_size >= int(group):
            return self.scales_of(int(group))
        return self.scales[:, :: int(group) // self.group_size]


def ternary_matrices(model: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, Ternary]:
    """The ternary matrices of a network by name, such as "layers.0.attn.wq.weight". See trits_of()."""
    found = {}
    for name, trits, scales in trits_of(model, weights):
        rows = np.broadcast_to(np.array(scales), (trits.shape[0], scales.shape[1]))
        found[name] = Ternary(trits=np.array(trits.astype(mx.int8)), scales=rows)
    return found


def common_group(matrices: Iterable[Ternary]) -> str | None:
    """The largest group, a value of model.ternary_group, that fits all matrices. None if there is none."""
    matrices = list(matrices)
    return next((group for group in GROUPS if all(matrix.fits(group) for matrix in matrices)), None)


def packed_network(
    model: ModelConfig, weights: Tensors, matrices: Mapping[str, Ternary], group: str, activations: str
) -> tuple[ModelConfig, Tensors]:
    """Returns a network with packed ternary matrices, and its weights.

    Args:
        model: The network with dense matrices.
        weights: Its other weights by name.
        matrices: The matrices of its blocks by name.
        group: A value of model.ternary_group that fits all of them.
        activations: The value of model.ternary_activations.
    """
    found = dict(weights)
    for name, matrix in matrices.items():
        stem = name.removesuffix("weight")
        found[f"{stem}codes"] = np.array(pack(mx.array(matrix.trits)))
        found[f"{stem}scales"] = np.ascontiguousarray(matrix.scales_by(group), np.float32)
    model = dataclasses.replace(model, linear=PACKED, ternary_group=group, ternary_activations=activations)
    return model, dict(sorted(found.items()))
