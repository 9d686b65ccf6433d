"""Specs: the description of a module's weights. Every module declares the shape, initial value and role of each weight.

The specs are the only list of weight names. These are derived from them: the parameter count, the initial values, the
check of a checkpoint's tensors, the optimizer's groups, the weight decay, and the order of tensors in an RGPT file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mlx_gpt.config.table import lookup
from mlx_gpt.device.mlx import mx

# The roles of weights in the network. The optimizer chooses the update rule and the decay of a weight by its role.
ROLES = {
    "matrix": "a matrix inside a block",
    "matrices": "a stack of such matrices, (count, rows, columns)",
    "embedding": "a table read by index",
    "head": "the map from the residual stream to logits",
    "gain": "a norm's weight",
    "packed": "codes and scales of packed matrices, which are not trained",
    "scalar": "gates, decays, mixing logits, and other small arrays that are not linear maps, like depthwise kernels",
}


class Init(Protocol):
    """Makes the initial values of a weight from its shape and a random key, (2,) uint32, that no other weight uses."""

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array: ...


@dataclass(frozen=True, slots=True)
class Normal:
    """Normally distributed values with mean 0 and standard deviation `std`, float32."""

    std: float

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.random.normal(shape, key=key) * self.std


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in every element."""

    value: float

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.full(shape, self.value)


@dataclass(frozen=True, slots=True)
class Values:
    """The given values, for a weight of one dimension."""

    values: tuple[float, ...]

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return mx.array(self.values, mx.float32)


@dataclass(frozen=True, slots=True)
class LogUniform:
    """function(x) of values x whose logarithm is uniformly distributed between those of `low` and `high`."""

    low: float
    high: float
    function: Callable[[mx.array], mx.array]

    def __call__(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        return self.function(mx.exp(mx.random.uniform(math.log(self.low), math.log(self.high), shape, key=key)))


@dataclass(frozen=True, slots=True)
class Weight:
    """The shape, the initializer and the role of a weight.

    `float32` says whether the weight stays float32 if the network computes in half precision. `dtype` is its type in
    checkpoints, "float32" or "uint8".

    Raises:
        UserError: The role is not in ROLES.
    """

    shape: tuple[int, ...]
    init: Init
    role: str
    float32: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        lookup(ROLES, self.role, "role of a weight:")


Specs = dict[str, Weight]
ROWS = "rows"  # the part of an optimizer's state with one number for each row of a weight


def state_shape(part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a part of an optimizer's state, for a weight of shape `shape`.

    Args:
        part: Its name, such as "m", or "m@2" for that of rank 2 between the exchanges of local steps.
        shape: The shape of the weight.
    """
    return (*shape[:-1], 1) if part.partition("@")[0] == ROWS else shape


def prefixed(name: str, specs: Specs) -> Specs:
    """Returns the specs with `name` and a dot before each weight's name: {"weight": w} becomes {"name.weight": w}.

    A parent module uses this for the specs of a child that is its attribute `name`.
    """
    return {f"{name}.{own}": weight for own, weight in specs.items()}
