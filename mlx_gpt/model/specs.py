"""Weights describe themselves: every module says the shape, the initial value and the role of each of its weights.

The parameter count, initial values, the layout check of a checkpoint, the optimizer's groups, weight decay and the
order of tensors in an RGPT file are derived from these specs. There is no other list of weight names.
"""

from dataclasses import dataclass
from typing import Protocol

from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx

# What a weight is to the network. The optimizer chooses its update rule and its decay by role.
ROLES = {
    "matrix": "a matrix inside a block",
    "matrices": "a stack of such matrices, (count, rows, columns)",
    "embedding": "a table read by index",
    "head": "the map from the residual stream to logits",
    "gain": "a norm's weight",
    "scalar": "gates, decays, mixing logits, and other small arrays that are not linear maps, as depthwise kernels",
}


class Init(Protocol):
    """Initial values of a weight, from its shape and a key of its own."""

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array: ...


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal values of mean 0."""

    std: float

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.random.normal(shape, key=key) * self.std


@dataclass(frozen=True, slots=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.full(shape, self.value)


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight's shape, initial values and role.

    Raises UserError for a role that is not in ROLES.
    """

    shape: tuple[int, ...]
    init: Init
    role: str

    def __post_init__(self):
        lookup(ROLES, self.role, "role of a weight:")


Specs = dict[str, Weight]


def prefixed(name: str, specs: Specs) -> Specs:
    """The specs of a module that is called `name` in its parent, as {"name.weight": ...}."""
    return {f"{name}.{own}": weight for own, weight in specs.items()}
