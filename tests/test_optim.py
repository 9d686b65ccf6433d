"""Schedules, clips and AdamW, against their definitions."""

import math

import numpy as np
import pytest

from mlx_gpt.backend import mx
from mlx_gpt.config import OptimizerConfig
from mlx_gpt.optim.clip import CLIPS, global_norm
from mlx_gpt.optim.optimizers import AdamW
from mlx_gpt.optim.schedules import learning_rate

SEED = OptimizerConfig(learning_rate=3e-5, min_learning_rate=3e-6, warmup_steps=100, decay_start=0.6, lr_cuts=3)


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 3e-6),
        (50, 0.55 * 3e-5),
        (100, 3e-5),
        (599, 3e-5),
        (600, 3e-5),
        (800, (3e-5 + 3e-6) / 2),
        (1000, 3e-6),
        (5000, 3e-6),
    ],
)
def test_the_schedule_warms_up_stays_and_falls_as_a_cosine(step, expected):
    assert learning_rate(SEED, step, 1000) == pytest.approx(expected)


def test_the_schedule_never_leaves_its_bounds_and_falls_at_the_end():
    rates = [learning_rate(SEED, step, 1000) for step in range(1001)]
    assert min(rates) >= 3e-6 - 1e-12 and max(rates) <= 3e-5 + 1e-12
    assert all(a <= b for a, b in zip(rates[:100], rates[1:101], strict=True))
    assert all(a >= b for a, b in zip(rates[600:], rates[601:], strict=False))


def test_cuts_lower_the_peak_but_not_under_the_end():
    assert learning_rate(SEED, 300, 1000, cuts=2) == pytest.approx(3e-5 / 4)
    assert learning_rate(SEED, 300, 1000, cuts=20) == pytest.approx(3e-6)


def gradients():
    draw = np.random.default_rng(0)
    return {"a": draw.normal(size=(4, 5)).astype(np.float32) * 3, "b": draw.normal(size=7).astype(np.float32) * 0.01}


def clipped(mode, bound):
    grads = {k: mx.array(g) for k, g in gradients().items()}
    return {k: np.array(g) for k, g in CLIPS[mode](grads, bound, global_norm(grads)).items()}


def test_clips_bound_what_they_say():
    plain = gradients()
    norms = {k: np.linalg.norm(g) for k, g in plain.items()}
    total = math.hypot(*norms.values())
    for k, g in plain.items():
        np.testing.assert_allclose(clipped("global", 1.0)[k], g / total, rtol=1e-5)
        np.testing.assert_allclose(clipped("tensor", 1.0)[k], g / max(norms[k], 1), rtol=1e-5)
        np.testing.assert_array_equal(clipped("element", 1.0)[k], g.clip(-1, 1))
        np.testing.assert_array_equal(clipped("none", 1.0)[k], g)
        np.testing.assert_allclose(clipped("global", 1e6)[k], g, rtol=1e-6)


def test_adamw_is_its_definition_in_float64():
    config = OptimizerConfig(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    optimizer, draw = AdamW(config), np.random.default_rng(1)
    w = {"w": draw.normal(size=(3, 4))}
    weights = {"w": mx.array(w["w"].astype(np.float32))}
    state, m, v = optimizer.init(weights), np.zeros((3, 4)), np.zeros((3, 4))
    for t in range(1, 200):
        g, lr = draw.normal(size=(3, 4)).astype(np.float32), 1e-2 / t
        weights, state = optimizer.update(weights, {"w": mx.array(g)}, state, mx.array(lr))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        w["w"] = w["w"] * (1 - lr * 0.1) - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(weights["w"], w["w"], atol=1e-5, rtol=0)
    assert state["step"].item() == 199
