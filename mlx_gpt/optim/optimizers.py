"""AdamW with decoupled weight decay (arXiv:1711.05101, algorithm 2) and bias correction."""

import math
from dataclasses import dataclass
from typing import Any

from mlx_gpt.backend import mx
from mlx_gpt.config import OptimizerConfig

Weights = dict[str, mx.array]
State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdamW:
    """Pure functions of explicit state: {"step": () int32, "m": moments by weight, "v": moments by weight}."""

    config: OptimizerConfig

    def init(self, weights: Weights) -> State:
        return {
            "step": mx.array(0, dtype=mx.int32),
            "m": {name: mx.zeros_like(w) for name, w in weights.items()},
            "v": {name: mx.zeros_like(w) for name, w in weights.items()},
        }

    def update(self, weights: Weights, grads: Weights, state: State, lr: mx.array) -> tuple[Weights, State]:
        """The weights after one step at rate `lr`, () float32, and the new state."""
        beta1, beta2, eps, decay = self.config.beta1, self.config.beta2, self.config.eps, self.config.weight_decay
        step = state["step"] + 1
        m_bias, v_bias = _bias_correction((beta1, beta2), step)
        new_weights, new_m, new_v = {}, {}, {}
        for name, w in weights.items():
            g = grads[name]
            m = beta1 * state["m"][name] + (1 - beta1) * g
            v = beta2 * state["v"][name] + (1 - beta2) * mx.square(g)
            update = (m / m_bias) / (mx.sqrt(v / v_bias) + eps)
            new_weights[name] = w * (1 - lr * decay) - lr * update
            new_m[name], new_v[name] = m, v
        return new_weights, {"step": step, "m": new_m, "v": new_v}


def _bias_correction(betas: tuple[float, ...], step: mx.array) -> list[mx.array]:
    """1 - beta^step for each beta, as -expm1(step * log(beta)), which float32 can hold.

    Computed as one array and sliced: mx.compile fuses no slice, so the transcendental is evaluated once for each beta
    and not once for each weight.
    """
    logs = mx.array([math.log(beta) if beta else -math.inf for beta in betas])
    corrections = -mx.expm1(step.astype(mx.float32) * logs)
    return [corrections[i] for i in range(len(betas))]
