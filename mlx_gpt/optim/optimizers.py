"""AdamW, Muon and Lion as pure functions of explicit state, and the average of the weights.

The role of a weight decides which rule updates it. An optimizer's state is {"num_updates": () int32} and its parts,
each a dictionary of arrays shaped as their weights: "m" and "v", the moments, and "ema", the average.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from mlx_gpt.config.schema import OptimizerConfig
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.specs import ROLES
from mlx_gpt.optim.schedules import learning_rate

Weights = dict[str, mx.array]
State = dict[str, Any]
COUNT, EMA = "num_updates", "ema"


@dataclass(frozen=True, slots=True)
class AdamW:
    """Decoupled weight decay (arXiv:1711.05101, algorithm 2) and bias correction."""

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m", "v")

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        beta1, beta2, eps, decay = self.config.beta1, self.config.beta2, self.config.eps, self.decay
        m_bias, v_bias = _bias_correction((beta1, beta2), state[COUNT])
        new_weights, new_m, new_v = {}, {}, {}
        for name, w in weights.items():
            g = grads[name]
            m = beta1 * state["m"][name] + (1 - beta1) * g
            v = beta2 * state["v"][name] + (1 - beta2) * mx.square(g)
            update = (m / m_bias) / (mx.sqrt(v / v_bias) + eps)
            new_weights[name] = w * (1 - lr * decay) - lr * update
            new_m[name], new_v[name] = m, v
        return new_weights, {"m": new_m, "v": new_v}


@dataclass(frozen=True, slots=True)
class Muon:
    """Nesterov momentum, made orthogonal (https://kellerjordan.github.io/posts/muon/); decoupled weight decay.

    For matrices and stacks of them. The update of a weight (..., rows, columns) is scaled by
    sqrt(max(1, rows / columns)).
    """

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m",)

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        momentum, decay = self.config.momentum, self.decay
        lr = lr * (self.config.muon_learning_rate / self.config.learning_rate)
        m = {name: momentum * state["m"][name] + (1 - momentum) * grads[name] for name in weights}
        directions = orthogonal({name: momentum * m[name] + (1 - momentum) * grads[name] for name in weights})
        new_weights = {}
        for name, w in weights.items():
            rows, columns = w.shape[-2:]
            new_weights[name] = w * (1 - lr * decay) - lr * math.sqrt(max(1, rows / columns)) * directions[name]
        return new_weights, {"m": m}


@dataclass(frozen=True, slots=True)
class Lion:
    """The sign of an interpolated momentum (arXiv:2302.06675, algorithm 2), decoupled weight decay."""

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m",)

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        beta1, beta2, decay = self.config.beta1, self.config.beta2, self.decay
        new_weights, new_m = {}, {}
        for name, w in weights.items():
            m, g = state["m"][name], grads[name]
            new_weights[name] = w * (1 - lr * decay) - lr * mx.sign(beta1 * m + (1 - beta1) * g)
            new_m[name] = beta2 * m + (1 - beta2) * g
        return new_weights, {"m": new_m}


# The update rule of each role, for each `optimizer.name`.
RULES = {
    "adamw": dict.fromkeys(ROLES, AdamW),
    "muon": dict.fromkeys(ROLES, AdamW) | {"matrix": Muon, "matrices": Muon},
    "lion": dict.fromkeys(ROLES, Lion),
}
# Decay would pull gates and mixing logits to sigmoid(0) = 1/2. randyGPT, which has none, decays all of its weights.
NOT_DECAYED = {"scalar"}


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """The weights that one rule updates with one decay."""

    rule: Any
    names: list[str]


class Optimizer:
    """The rules of `config.name`, each on its own weights, and the average of all weights.

    Args:
        config: The settings of [optimizer].
        roles: The role of every weight by its name, as `Weight.role` gives it.
    """

    def __init__(self, config: OptimizerConfig, roles: Mapping[str, str]):
        self.config = config
        found: dict[Any, list[str]] = {}
        for name, role in sorted(roles.items()):
            rule = RULES[config.name][role](config, 0.0 if role in NOT_DECAYED else config.weight_decay)
            found.setdefault(rule, []).append(name)
        self.groups = [ParamGroup(rule, names) for rule, names in found.items()]

    def init(self, weights: Weights) -> State:
        """The state before the first update."""
        state: State = {COUNT: mx.array(0, dtype=mx.int32)}
        for group in self.groups:
            for part in group.rule.parts:
                state.setdefault(part, {}).update({name: mx.zeros_like(weights[name]) for name in group.names})
        if self.config.ema_decay:
            state[EMA] = dict(weights)
        return state

    def restore(self, weights: Weights, tensors: Mapping[str, Any], num_updates: int) -> State:
        """The state of a checkpoint. Its tensors are named as "m.wte.weight"; missing ones take their
        initial values.

        Its arrays are in the order of init(), since a compiled function takes a state by its order.
        """
        state = self.init(weights)
        for part in state.keys() - {COUNT}:
            state[part] = {name: mx.array(tensors.get(f"{part}.{name}", a)) for name, a in state[part].items()}
        return state | {COUNT: mx.array(num_updates, dtype=mx.int32)}

    def required_tensors(self) -> set[str]:
        """Names of the optimizer tensors required to resume, as "m.wte.weight"."""
        return {f"{part}.{name}" for group in self.groups for part in group.rule.parts for name in group.names}

    def learning_rate(self, step: int, num_steps: int, num_cuts: int) -> float:
        """The rate of update `step` (0-based) of `num_steps`, its peak cut `num_cuts` times."""
        return learning_rate(self.config, step, num_steps, num_cuts)

    def average(self, state: State) -> Weights | None:
        """The average of the weights, where the settings ask for one."""
        return state.get(EMA)

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        """The weights after one update at rate `lr`, () float32, and the new state."""
        new: State = {part: dict(arrays) if part != COUNT else arrays + 1 for part, arrays in state.items()}
        new_weights = dict(weights)
        for group in self.groups:
            changed, parts = group.rule.update(
                {name: weights[name] for name in group.names}, grads, state | {COUNT: new[COUNT]}, lr
            )
            new_weights |= changed
            for part, arrays in parts.items():
                new[part] |= arrays
        if self.config.ema_decay:
            share = 1 - _average_decay(self.config.ema_decay, new[COUNT])
            new[EMA] = {name: a + share * (new_weights[name] - a) for name, a in state[EMA].items()}
        return new_weights, new


def orthogonal(matrices: Weights) -> Weights:
    """Replaces each matrix U S V^T by nearly U V^T, with singular values between about 0.7 and 1.2.

    Five steps of the quintic Newton-Schulz iteration in float32. Matrices of one shape are stacked, and each lane
    computes a part of the stack.
    """
    wide = {name: a if a.shape[-2] <= a.shape[-1] else a.swapaxes(-1, -2) for name, a in matrices.items()}
    result, streams = {}, lanes()
    by_shape = sorted(wide, key=lambda name: wide[name].shape)
    for _, group in groupby(by_shape, key=lambda name: wide[name].shape):
        names = list(group)
        for i, lane in enumerate(streams[: len(names)]):
            with mx.stream(lane):
                part = names[i :: len(streams)]
                made = _newton_schulz(mx.stack([wide[name] for name in part]))
                result |= {
                    n: x if wide[n] is matrices[n] else x.swapaxes(-1, -2) for n, x in zip(part, made, strict=True)
                }
    return {name: result[name] for name in matrices}


def _newton_schulz(x: mx.array) -> mx.array:
    """Five iterations on x (..., rows, columns), rows <= columns."""
    x = x / (mx.sqrt(mx.square(x).sum((-2, -1), keepdims=True)) + 1e-7)
    for _ in range(5):
        a = x @ x.swapaxes(-1, -2)
        b = -4.7750 * a + 2.0315 * (a @ a)
        x = 3.4445 * x + b @ x
    return x


def _average_decay(decay: float, step: mx.array) -> mx.array:
    """min(decay, (1 + step) / (10 + step)): a shorter memory at first, so that the initial weights are forgotten."""
    step = step.astype(mx.float32)
    return mx.minimum(decay, (1 + step) / (10 + step))


def _bias_correction(betas: tuple[float, ...], step: mx.array) -> list[mx.array]:
    """1 - beta^step for each beta, as -expm1(step * log(beta)): the plain difference loses digits near 1.

    They are computed as one array and sliced. mx.compile does not fuse slices, so expm1 is evaluated once for each beta
    and not once for each weight.
    """
    logs = mx.array([math.log(beta) if beta else -math.inf for beta in betas])
    corrections = -mx.expm1(step.astype(mx.float32) * logs)
    return [corrections[i] for i in range(len(betas))]
