"""Schedules, clips and optimizers, against their definitions."""

import math

import numpy as np
import pytest
from covering import covering
from devices import tolerance

from mlx_gpt.config.effects import MUONS
from mlx_gpt.config.schema import ModelConfig, OptimizerConfig
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import roles_of, shapes_of
from mlx_gpt.optim.clip import CLIPS, global_norm
from mlx_gpt.optim.optimizers import NEWTON_SCHULZ, RULES, Muon, Optimizer, orthogonal
from mlx_gpt.optim.schedules import learning_rate

LOSS = tolerance("float32 loss")

SEED = OptimizerConfig(
    schedule="cosine", learning_rate=3e-5, min_learning_rate=3e-6, warmup_steps=100, decay_start=0.6, max_lr_cuts=3
)


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


WEIGHTS = {
    "layers.0.attn.wq.weight": (8, 8),
    "layers.0.mlp.fc1.weight": (24, 8),
    "layers.1.mlp.fc1.weight": (24, 8),
    "layers.1.mlp.fc2.weight": (8, 24),
    "layers.1.mlp_norm.weight": (8,),
    "wte.weight": (11, 8),
}


ROLES = dict.fromkeys(WEIGHTS, "matrix") | {"layers.1.mlp_norm.weight": "gain", "wte.weight": "embedding"}


def adamw_reference(c, t, w, g, lr, state):
    m = state["m"] = c.beta1 * state.get("m", 0) + (1 - c.beta1) * g
    v = state["v"] = c.beta2 * state.get("v", 0) + (1 - c.beta2) * g**2
    return w * (1 - lr * c.weight_decay) - lr * (m / (1 - c.beta1**t)) / (np.sqrt(v / (1 - c.beta2**t)) + c.eps)


def lion_reference(c, t, w, g, lr, state):
    direction = np.sign(c.beta1 * state.get("m", 0) + (1 - c.beta1) * g)
    state["m"] = c.beta2 * state.get("m", 0) + (1 - c.beta2) * g
    return w - lr * (direction + c.weight_decay * w)


def muon_reference(c, t, w, g, lr, state, changed=lambda direction: direction):
    """The polynomial on the singular values, by a decomposition in place of matrix products."""
    m = state["m"] = c.momentum * state.get("m", 0) + (1 - c.momentum) * g
    u, s, vt = np.linalg.svd(c.momentum * m + (1 - c.momentum) * g, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for p, q, r in NEWTON_SCHULZ[c.newton_schulz]:
        s = p * s + q * s**3 + r * s**5
    lr = lr * c.muon_lr_scale
    return w * (1 - lr * c.weight_decay) - lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * changed((u * s) @ vt)


def normuon_reference(c, t, w, g, lr, state):
    """Algorithm 1 of arXiv:2510.05491 with a bias correction, and the norm of the direction in place of its 0.2."""

    def even(o):
        rows = state["rows"] = c.beta2 * state.get("rows", 0) + (1 - c.beta2) * (o**2).mean(1)
        scaled = o / np.sqrt(rows / (1 - c.beta2**t))[:, None]
        return scaled * np.linalg.norm(o) / np.linalg.norm(scaled)

    return muon_reference(c, t, w, g, lr, state, even)


def is_matrix_of_a_block(name):
    return name.startswith("layers.") and "norm" not in name


REFERENCES = {
    "adamw": lambda name: adamw_reference,
    "lion": lambda name: lion_reference,
    "muon": lambda name: muon_reference if is_matrix_of_a_block(name) else adamw_reference,
    "normuon": lambda name: normuon_reference if is_matrix_of_a_block(name) else adamw_reference,
    "muon-lion": lambda name: muon_reference if is_matrix_of_a_block(name) else lion_reference,
}


@pytest.mark.parametrize("name, num_lanes", covering(list(RULES), [1, 2, 5], together=1))
def test_optimizers_are_their_definitions_in_float64(name, num_lanes):
    config = OptimizerConfig(name=name, learning_rate=1e-2, muon_lr_scale=3.0, ema_decay=0.9)
    optimizer, draw = Optimizer(config, ROLES), np.random.default_rng(1)
    expected = {k: draw.normal(size=shape) for k, shape in WEIGHTS.items()}
    weights = {k: mx.array(w.astype(np.float32)) for k, w in expected.items()}
    average = {k: np.float32(w) for k, w in expected.items()}
    state, states = optimizer.init(weights), {k: {} for k in WEIGHTS}
    lanes(num_lanes)
    for t in range(1, 100):
        grads, lr = {k: draw.normal(size=shape).astype(np.float32) for k, shape in WEIGHTS.items()}, 1e-2 / t
        weights, state = optimizer.update(weights, {k: mx.array(g) for k, g in grads.items()}, state, mx.array(lr))
        for k, w in expected.items():
            expected[k] = REFERENCES[name](k)(config, t, w, grads[k].astype(np.float64), lr, states[k])
            average[k] = average[k] + (1 - min(0.9, (1 + t) / (10 + t))) * (expected[k] - average[k])
            np.testing.assert_allclose(weights[k], expected[k], atol=LOSS, rtol=0, err_msg=f"{k} @{t}")
            np.testing.assert_allclose(state["ema"][k], average[k], atol=LOSS, rtol=0, err_msg=f"{k} @{t}")
    lanes(0)
    assert state["num_updates"].item() == 99


def test_every_matrix_of_a_block_goes_to_muon_and_nothing_else():
    for model in (ModelConfig(), ModelConfig(norm_weights=True, final_norm=True, ffn="swiglu")):
        weights = {name: mx.zeros(shape) for name, shape in shapes_of(model, 7).items()}
        state = Optimizer(OptimizerConfig(name="muon"), roles_of(model, 7)).init(weights)
        assert state["m"].keys() == weights.keys()
        assert {k for k in weights if k not in state["v"]} == {k for k in weights if is_matrix_of_a_block(k)}
        assert all(weights[k].ndim == 2 for k in weights.keys() - state["v"].keys())


def test_the_settings_of_muon_are_those_of_the_optimizers_that_have_it():
    assert set(MUONS) == {name for name, rules in RULES.items() if issubclass(rules["matrix"], Muon)}


@pytest.mark.parametrize("shape", [(64, 64), (16, 80), (80, 16), (1, 9)])
def test_muons_direction_is_nearly_orthogonal_and_blind_to_scale(shape):
    g = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = [
        np.array(orthogonal({"g": mx.array(g * scale)}, NEWTON_SCHULZ["jordan"])["g"]) for scale in (1e-3, 1.0, 1e3)
    ]
    for direction in found:
        singular = np.linalg.svd(direction, compute_uv=False)
        assert 0.5 < np.median(singular) < 1.3 and singular.max() < 1.3
        np.testing.assert_allclose(direction, found[1], atol=2e-3)


@pytest.mark.parametrize("steps", NEWTON_SCHULZ.values(), ids=NEWTON_SCHULZ)
@pytest.mark.parametrize("shape", [(24, 24), (16, 80), (2, 80, 16)])
def test_the_iteration_changes_the_singular_values_alone(shape, steps):
    g = np.random.default_rng(1).normal(size=shape)
    u, s, v = np.linalg.svd(g / np.linalg.norm(g, axis=(-2, -1), keepdims=True), full_matrices=False)
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    found = np.array(orthogonal({"g": mx.array(g.astype(np.float32))}, steps)["g"])
    np.testing.assert_allclose(found, u * s[..., None, :] @ v, atol=2e-5)


@pytest.mark.parametrize("name", NEWTON_SCHULZ)
def test_the_setting_chooses_the_iteration(name):
    g = {"w": mx.array(np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32))}
    config = OptimizerConfig(name="muon", newton_schulz=name, momentum=0.0, weight_decay=0.0, muon_lr_scale=1.0)
    optimizer = Optimizer(config, {"w": "matrix"})
    new, _ = optimizer.update({"w": mx.zeros((8, 8))}, g, optimizer.init(g), mx.array(1.0))
    np.testing.assert_allclose(new["w"], -orthogonal(g, NEWTON_SCHULZ[name])["w"], atol=1e-6)


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_matrix_without_gradient_stays_where_decay_leaves_it(name):
    """Exactly zero gradients, as of positions never read, are no division by zero."""
    config, w = OptimizerConfig(name=name, weight_decay=0.5), {"layers.0.attn.wq.weight": mx.ones((4, 4))}
    optimizer = Optimizer(config, dict.fromkeys(w, "matrix"))
    new, _ = optimizer.update(w, {k: mx.zeros((4, 4)) for k in w}, optimizer.init(w), mx.array(3e-3))
    np.testing.assert_allclose(new["layers.0.attn.wq.weight"], 1 - 0.02 * 0.5, rtol=1e-6)


def test_the_published_schedule_with_a_warm_up_from_zero():
    config = OptimizerConfig(
        schedule="wsd-cosine", warmup_steps=100, decay_start=0.8, learning_rate=1.0, min_learning_rate=0.1
    )
    expected = {0: 0, 50: 0.5, 100: 1, 799: 1, 800: 1, 850: 0.868198, 900: 0.55, 1000: 0.1, 1200: 0.1}
    for step, rate in expected.items():
        assert learning_rate(config, step, 1000) == pytest.approx(rate, abs=1e-6), step


def test_the_published_step_of_lion():
    config = OptimizerConfig(name="lion", weight_decay=0.0)
    optimizer, w = Optimizer(config, {"w": "gain"}), {"w": mx.array([0.5])}
    state = optimizer.init(w) | {"m": {"w": mx.array([0.2])}}
    new, state = optimizer.update(w, {"w": mx.array([-0.3])}, state, mx.array(1e-4))
    assert new["w"].item() == pytest.approx(0.4999) and state["m"]["w"].item() == pytest.approx(0.195)


@pytest.mark.parametrize("schedule, start", [("linear", 10), ("wsd", 75), ("cosine", 75)])
def test_schedules_stay_at_the_peak_and_end_at_the_minimum(schedule, start):
    config = OptimizerConfig(schedule=schedule, warmup_steps=10, decay_start=0.75, learning_rate=1.0)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[100] == 0
    assert all(rate == 1 for rate in rates[10 : start + 1]) and rates[start + 1] < 1
    falls = -np.diff(rates[start:])
    if schedule != "cosine":
        np.testing.assert_allclose(falls, 1 / (100 - start))
    assert (falls > 0).all()
