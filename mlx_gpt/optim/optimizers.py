"""AdamW, Muon, NorMuon and Lion as pure functions of explicit state, and an exponential moving average of the weights.

An optimizer applies an update rule to each weight, chosen by the weight's role (`model/specs.py`). Its state is a
dictionary: "num_updates" is the number of updates, () int32. The other entries, called parts, are dictionaries of
arrays by weight name: "m" (the first moment or momentum), "v" (the second moment) and "ema" (the moving average of the
weights) have the weight's shape, and "rows" (NorMuon's second moment) has one number for each of its rows. A part
exists only if a rule or the settings need it.

Every rule is a dataclass with a method `update(weights, grads, state, lr, divide) -> (new weights, new parts)`, where
state["num_updates"] includes the current update, and `lr` is the rule's learning rate, () float32. `divide` is that of
the Optimizer. `parts` names the parts of the state that the rule needs. `lr_scale` is the rule's learning rate as a
multiple of the scheduled one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

from mlx_gpt.config.schema import OptimizerConfig
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.specs import ROLES, ROWS, state_shape
from mlx_gpt.optim.schedules import learning_rate

Weights = dict[str, mx.array]
State = dict[str, Any]
Divide = Callable[[Callable[[Weights], Weights], Weights], Weights]
COUNT, EMA = "num_updates", "ema"
# For each `optimizer.newton_schulz`, the coefficients (a, b, c) of each step: a singular value s becomes
# a s + b s^3 + c s^5. "jordan" is Muon's iteration. "polar" is the first three steps of the Polar Express
# (arXiv:2505.16932), whose coefficients are those for singular values between 0.001 and 1.
NEWTON_SCHULZ = {
    "jordan": 5 * [(3.4445, -4.7750, 2.0315)],
    "polar": [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    ],
}


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101, algorithm 2) and bias correction."""

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m", "v")
    lr_scale: ClassVar = 1.0

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array, divide) -> tuple[Weights, State]:
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
    """Muon (https://kellerjordan.github.io/posts/muon/) with decoupled weight decay.

    Muon replaces the Nesterov momentum of a matrix by a nearly orthogonal matrix (see `orthogonal`) and scales it by
    sqrt(max(1, rows / columns)). It updates matrices (rows, columns) and stacks of them, (count, rows, columns).
    """

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m",)

    @property
    def lr_scale(self) -> float:
        return self.config.muon_lr_scale

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array, divide) -> tuple[Weights, State]:
        momentum, decay = self.config.momentum, self.decay
        m = {name: momentum * state["m"][name] + (1 - momentum) * grads[name] for name in weights}
        nesterov = {name: momentum * m[name] + (1 - momentum) * grads[name] for name in weights}
        made = divide(partial(orthogonal, steps=NEWTON_SCHULZ[self.config.newton_schulz]), nesterov)
        directions, parts = self.directions(made, state)
        new_weights = {}
        for name, w in weights.items():
            rows, columns = w.shape[-2:]
            new_weights[name] = w * (1 - lr * decay) - lr * math.sqrt(max(1, rows / columns)) * directions[name]
        return new_weights, {"m": m} | parts

    def directions(self, made: Weights, state: State) -> tuple[Weights, State]:
        """Returns the directions of the update for nearly orthogonal matrices, and further new parts."""
        return made, {}


@dataclass(frozen=True, slots=True)
class NorMuon(Muon):
    """NorMuon (arXiv:2510.05491): Muon whose directions have rows of about the same size.

    NorMuon divides each row of a direction by the square root of a moving average of its mean square, with the decay
    rate beta2. It then scales the matrix back to the Frobenius norm that it had, so that Muon's rates fit it too. The
    average needs no bias correction, because a factor that all rows share has no effect.
    """

    parts: ClassVar = ("m", ROWS)

    def directions(self, made: Weights, state: State) -> tuple[Weights, State]:
        beta2, eps = self.config.beta2, self.config.eps
        directions, new_rows = {}, {}
        for name, x in made.items():
            x = mx.contiguous(x)  # a sum over a transposed array may have another order, and so other last bits
            rows = beta2 * state[ROWS][name] + (1 - beta2) * mx.square(x).mean(-1, keepdims=True)
            even = x / (mx.sqrt(rows) + eps)
            directions[name] = even * (_frobenius(x) / (_frobenius(even) + 1e-7))
            new_rows[name] = rows
        return directions, {ROWS: new_rows}


@dataclass(frozen=True, slots=True)
class Lion:
    """Lion (arXiv:2302.06675, algorithm 2): updates by the sign of a momentum, with decoupled weight decay."""

    config: OptimizerConfig
    decay: float
    parts: ClassVar = ("m",)
    lr_scale: ClassVar = 1.0

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array, divide) -> tuple[Weights, State]:
        beta1, beta2, decay = self.config.beta1, self.config.beta2, self.decay
        new_weights, new_m = {}, {}
        for name, w in weights.items():
            m, g = state["m"][name], grads[name]
            new_weights[name] = w * (1 - lr * decay) - lr * mx.sign(beta1 * m + (1 - beta1) * g)
            new_m[name] = beta2 * m + (1 - beta2) * g
        return new_weights, {"m": new_m}


# For each `optimizer.name`, the update rule of each role.
RULES = {
    "adamw": dict.fromkeys(ROLES, AdamW),
    "muon": dict.fromkeys(ROLES, AdamW) | {"matrix": Muon, "matrices": Muon},
    "normuon": dict.fromkeys(ROLES, AdamW) | {"matrix": NorMuon, "matrices": NorMuon},
    "lion": dict.fromkeys(ROLES, Lion),
    "muon-lion": dict.fromkeys(ROLES, Lion) | {"matrix": Muon, "matrices": Muon},
}
# Roles without weight decay. A scalar may be the logit of a gate: decay to 0 would pull the gate to sigmoid(0) = 1/2.
# randyGPT decays all of its weights. It has no scalars, so this exception does not change its training.
NOT_DECAYED = {"scalar"}


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """The names of the weights that one rule updates. `rule` holds its settings, the weight decay included."""

    rule: Any
    names: list[str]


class Optimizer:
    """Updates all weights of a model, each by the rule of its role, and keeps their moving average if configured.

    Args:
        config: The settings of [optimizer]. `config.name` selects the rules from RULES.
        roles: The role of every weight (`Weight.role`) by the weight's name.
        divide: divide(function, arrays) -> function(arrays), for a function of a dictionary of arrays that treats each
            array by itself. Several processes may divide the work. By default, this one does all of it.

    Attributes:
        groups: The weights, grouped by their rule.
    """

    def __init__(self, config: OptimizerConfig, roles: Mapping[str, str], divide: Divide | None = None):
        self.config, self._divide = config, divide or (lambda function, arrays: function(arrays))
        found: dict[Any, list[str]] = {}
        for name, role in sorted(roles.items()):
            rule = RULES[config.name][role](config, 0.0 if role in NOT_DECAYED else config.weight_decay)
            found.setdefault(rule, []).append(name)
        self.groups = [ParamGroup(rule, names) for rule, names in found.items()]

    def init(self, weights: Weights) -> State:
        """Returns the state before the first update: zeros, and the weights themselves as their average."""
        state: State = {COUNT: mx.array(0, dtype=mx.int32)}
        for group in self.groups:
            for part in group.rule.parts:
                zeros = {name: mx.zeros(state_shape(part, weights[name].shape)) for name in group.names}
                state.setdefault(part, {}).update(zeros)
        if self.config.ema_decay:
            state[EMA] = dict(weights)
        return state

    def restore(self, weights: Weights, tensors: Mapping[str, Any], num_updates: int) -> State:
        """Returns the state that a checkpoint holds.

        Args:
            weights: The weights by name.
            tensors: The checkpoint's optimizer tensors by name, such as "m.wte.weight". Missing ones take their initial
                values.
            num_updates: The number of updates made so far.
        """
        # Assigning to existing keys keeps init()'s order. mx.compile takes the arrays of a dictionary in its order, so
        # another order would be traced as another graph.
        state = self.init(weights)
        for part in state.keys() - {COUNT}:
            state[part] = {name: mx.array(tensors.get(f"{part}.{name}", a)) for name, a in state[part].items()}
        return state | {COUNT: mx.array(num_updates, dtype=mx.int32)}

    def required_tensors(self) -> set[str]:
        """Returns the names of the rules' tensors, such as "m.wte.weight".

        If a checkpoint lacks one of them, a resumed run starts with a new optimizer state. The moving average is not
        among them: without it, the average starts again at the weights.
        """
        return {f"{part}.{name}" for group in self.groups for part in group.rule.parts for name in group.names}

    def learning_rate(self, step: int, num_steps: int, num_cuts: int) -> float:
        """Returns the scheduled learning rate of an update. See `schedules.learning_rate` for the arguments."""
        return learning_rate(self.config, step, num_steps, num_cuts)

    def rule_rates(self, lr: float) -> dict[str, float]:
        """Returns the learning rate of each rule, by the rule's name in lower case, for the scheduled rate `lr`."""
        return {type(group.rule).__name__.lower(): lr * group.rule.lr_scale for group in self.groups}

    def average(self, state: State) -> Weights | None:
        """Returns the moving average of the weights, or None if `optimizer.ema_decay` is 0."""
        return state.get(EMA)

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        """Makes one update. The arguments are not changed.

        Args:
            weights: The weights by name, float32.
            grads: Their gradients by the same names.
            state: The state that `init`, `restore` or the last update returned.
            lr: The scheduled learning rate, () float32. Each rule multiplies it by its `lr_scale`.

        Returns:
            The new weights and the new state.
        """
        new: State = {part: dict(arrays) if part != COUNT else arrays + 1 for part, arrays in state.items()}
        new_weights = dict(weights)
        for group in self.groups:
            changed, parts = group.rule.update(
                {name: weights[name] for name in group.names},
                grads,
                state | {COUNT: new[COUNT]},
                lr * group.rule.lr_scale,
                self._divide,
            )
            new_weights |= changed
            for part, arrays in parts.items():
                new[part] |= arrays
        if self.config.ema_decay:
            share = 1 - _average_decay(self.config.ema_decay, new[COUNT])
            new[EMA] = {name: a + share * (new_weights[name] - a) for name, a in state[EMA].items()}
        return new_weights, new


def orthogonal(matrices: Weights, steps: Sequence[tuple[float, float, float]]) -> Weights:
    """Replaces each matrix by a nearly orthogonal one: U S V^T (its SVD) becomes about U V^T.

    With the steps "jordan", the singular values of a result lie between about 0.7 and 1.2, except that those below
    about 0.0014 of the matrix's Frobenius norm stay smaller. With "polar", they lie between about 0.19 and 1.87, with
    the same exception. The iteration is computed in float32. For speed, matrices of the same shape are stacked, and
    each lane (an MLX stream, see `device/lanes.py`) computes a part of the stack.

    Args:
        matrices: Arrays (..., rows, columns) by name.
        steps: The steps of the iteration, see NEWTON_SCHULZ.

    Returns:
        Arrays of the same shapes, by name.
    """
    # The iteration multiplies x x^T, (rows, rows), so tall matrices are transposed to make the products smaller.
    wide = {name: a if a.shape[-2] <= a.shape[-1] else a.swapaxes(-1, -2) for name, a in matrices.items()}
    result, streams = {}, lanes()
    by_shape = sorted(wide, key=lambda name: wide[name].shape)
    for _, group in groupby(by_shape, key=lambda name: wide[name].shape):
        names = list(group)
        for i, lane in enumerate(streams[: len(names)]):
            with mx.stream(lane):
                part = names[i :: len(streams)]
                made = _newton_schulz(mx.stack([wide[name] for name in part]), steps)
                result |= {
                    n: x if wide[n] is matrices[n] else x.swapaxes(-1, -2) for n, x in zip(part, made, strict=True)
                }
    return {name: result[name] for name in matrices}


def _newton_schulz(x: mx.array, steps: Sequence[tuple[float, float, float]]) -> mx.array:
    """Applies Newton-Schulz steps to x (..., rows, columns), with rows <= columns.

    A step (a, b, c) maps every singular value s of x to a s + b s^3 + c s^5 and keeps the singular vectors. The
    iteration needs s <= 1 at first, so x is divided by its Frobenius norm, which is at least its largest s.
    """
    x = x / (_frobenius(x) + 1e-7)
    for a, b, c in steps:
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def _frobenius(x: mx.array) -> mx.array:
    """Returns the Frobenius norm of each matrix of x (..., rows, columns), (..., 1, 1)."""
    return mx.sqrt(mx.square(x).sum((-2, -1), keepdims=True))


def _average_decay(decay: float, step: mx.array) -> mx.array:
    """Returns min(decay, (1 + step) / (10 + step)), the decay of the moving average at update `step` (from 1).

    The lower decay at first makes the average forget the initial weights sooner.
    """
    step = step.astype(mx.float32)
    return mx.minimum(decay, (1 + step) / (10 + step))


def _bias_correction(betas: tuple[float, ...], step: mx.array) -> list[mx.array]:
    """Returns Adam's bias correction 1 - beta^step for each beta, () float32. `step` counts from 1.

    It is computed as -expm1(step * log(beta)), since 1 - beta^step loses digits where beta^step is near 1. beta = 0
    gives 1.

    All corrections are computed as one array and sliced. mx.compile does not fuse a slice into the kernels that use it,
    so expm1 is evaluated once for each beta. Otherwise it would be evaluated again in the kernel of each weight.
    """
    logs = mx.array([math.log(beta) if beta else -math.inf for beta in betas])
    corrections = -mx.expm1(step.astype(mx.float32) * logs)
    return [corrections[i] for i in range(len(betas))]
