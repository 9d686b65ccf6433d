"""Mixtures of experts: the rule in NumPy, blocks, gradients, ties, and the number of products."""

import numpy as np
import pytest
from devices import tolerance
from networks import SHAPE

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.cost import flops_per_token, num_active_params, num_params
from mlx_gpt.model.ffn.dense import SwiGLU
from mlx_gpt.model.ffn.moe import MixtureOfExperts, choose
from mlx_gpt.model.ffn.routing import arrange, block_size
from mlx_gpt.model.gpt import GPT

# (B, T, E, k)
SHAPES = [(1, 1, 8, 2), (2, 3, 8, 2), (2, 64, 8, 2), (3, 50, 5, 3), (2, 256, 8, 2), (1, 9, 3, 1), (1, 5, 2, 2)]


def mixture(E=8, k=2, seed=0, **settings):
    """A mixture with random weights, and its weights in NumPy."""
    config = ModelConfig(**SHAPE, ffn="moe", n_expert=E, n_expert_per_token=k, **settings)
    made, draw = MixtureOfExperts(config), np.random.default_rng(seed)
    specs = {name: w for name, w in MixtureOfExperts.specs(config).items() if "shared" not in name}
    weights = {
        name.removesuffix(".weight"): (draw.normal(size=w.shape) * 0.3).astype(np.float32) for name, w in specs.items()
    }
    put(made, weights)
    return made, weights


def put(made, weights):
    """Sets the router and the experts' matrices."""
    for name, w in weights.items():
        owner, own = (made, name) if name == "router" else (made[name], "weight")
        setattr(owner, own, mx.array(w))


def inputs(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def expert(w, i, x):
    gate = w["fc_gate"][i] @ x
    return w["fc2"][i] @ (gate / (1 + np.exp(-gate)) * (w["fc1"][i] @ x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_is_the_weighted_sum_of_its_experts(shape):
    B, T, E, k = shape
    made, w = mixture(E, k)
    x, expected = inputs(B, T, 24), np.zeros((B, T, 24))
    for b in range(B):
        for t in range(T):
            logits = w["router"].astype(np.float64) @ x[b, t]
            best = np.argsort(-logits, kind="stable")[:k]
            shares = np.exp(logits[best] - logits[best].max())
            for i, share in zip(best, shares / shares.sum(), strict=True):
                expected[b, t] += share * expert(w, i, x[b, t].astype(np.float64))
    np.testing.assert_allclose(made(mx.array(x))[0], expected, atol=2 * tolerance("float32 network"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_all_experts_with_the_others_weighted_zero(shape):
    B, T, E, k = shape
    made, w = mixture(E, k)
    x, dy, weights = (
        mx.array(inputs(B, T, 24)),
        mx.array(inputs(B, T, 24, seed=2)),
        {n: mx.array(a) for n, a in w.items()},
    )

    def ours(x, weights):
        put(made, weights)
        return (made(x)[0] * dy).sum()

    def plainly(x, weights):
        logits = x @ weights["router"].T
        experts = choose(logits, k)
        shares = mx.softmax(mx.take_along_axis(logits, experts, axis=-1), axis=-1)
        gates = sum(mx.where(experts[..., i : i + 1] == mx.arange(E), shares[..., i : i + 1], 0) for i in range(k))
        y = 0
        for i in range(E):
            gate = x @ weights["fc_gate"][i].T
            hidden = mx.sigmoid(gate) * gate * (x @ weights["fc1"][i].T)
            y = y + gates[..., i : i + 1] * (hidden @ weights["fc2"][i].T)
        return (y * dy).sum()

    found, expected = (mx.grad(f, argnums=(0, 1))(x, weights) for f in (ours, plainly))
    for name, a, b in [("x", found[0], expected[0]), *((n, found[1][n], expected[1][n]) for n in weights)]:
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, mx.abs(b).max().item()), err_msg=name)
    chosen = set(np.array(choose(x @ weights["router"].T, k)).ravel().tolist())
    for i in range(E):
        assert (i in chosen) == bool(mx.any(found[1]["fc1"][i] != 0).item())


def test_equal_experts_are_one_dense_network():
    made, w = mixture()
    config = made.config
    for name in ("fc1", "fc_gate", "fc2"):
        put(made, {name: mx.broadcast_to(mx.array(w[name][0]), w[name].shape)})
    dense, x = SwiGLU(config), mx.array(inputs(2, 40, 24))
    dense.fc1.weight, dense.fc_gate.weight, dense.fc2.weight = (mx.array(w[n][0]) for n in ("fc1", "fc_gate", "fc2"))
    np.testing.assert_allclose(made(x)[0], dense(x)[0], atol=tolerance("float32 network"))


def test_a_shared_expert_computes_every_token():
    made, _ = mixture(n_shared_expert=1)
    x = mx.array(inputs(1, 7, 24))
    with_shared = made(x)[0]
    shared = made.shared(x)[0]
    del made["shared"]
    np.testing.assert_allclose(with_shared - made(x)[0], shared, atol=1e-6)


def test_of_equal_logits_the_lower_numbers_are_chosen():
    assert choose(mx.array([[1.0, 3, 2, 0]]), 2).tolist() == [[1, 2]]
    assert choose(mx.zeros((1, 5)), 3).tolist() == [[0, 1, 2]]
    assert choose(mx.array([[0.0, 2, 1, 2, 2]]), 4).tolist() == [[1, 3, 4, 2]]
    shares = mx.softmax(mx.array([3.0, 2.0]))  # the published vector: logits 1, 3, 2, 0 of which two are chosen
    np.testing.assert_allclose(shares, [0.731059, 0.268941], atol=1e-6)


def test_the_balance_is_1_if_loads_are_equal_and_the_number_of_experts_if_one_has_all():
    made, _ = mixture(E=4, k=1)
    made.router = mx.eye(4, 24) * 50
    alike = mx.eye(4, 24)[None]  # each token chooses another expert
    _, aux = made(alike)
    assert aux["balance"].item() == pytest.approx(1, abs=1e-5)
    assert [aux[name].item() for name in ("max_load", "min_load")] == pytest.approx([1, 1])
    _, aux = made(mx.broadcast_to(mx.eye(1, 24), (1, 6, 24)))
    assert aux["balance"].item() == pytest.approx(4, abs=1e-3)
    assert [aux[name].item() for name in ("max_load", "min_load")] == pytest.approx([4, 0])


def test_the_balance_of_a_batch_is_the_mean_of_its_rows():
    """So that it does not depend on the parts in which a batch is computed."""
    made, _ = mixture()
    x = mx.array(inputs(4, 32, 24))
    whole = made(x)[1]
    for name, value in whole.items():
        rows = [made(x[i : i + 1])[1][name].item() for i in range(4)]
        assert np.mean(rows) == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("A, E", [(1, 8), (2, 8), (64, 8), (512, 8), (2048, 8), (4096, 8), (999, 5), (4096, 64)])
def test_blocks_hold_every_assignment_once_and_few_rows_more(A, E):
    """At most a quarter more rows than assignments, whatever the experts are."""
    size, draw = block_size(A, E), np.random.default_rng(A)
    for experts in (draw.integers(0, E, A), np.zeros(A, int), np.full(A, E - 1), draw.choice([0, E - 1], A)):
        blocks = arrange(mx.array(experts.astype(np.uint32)), E, size)
        rows, sources, owners = (np.array(a) for a in blocks)
        assert len(set(rows.tolist())) == A and (sources[rows] == np.arange(A)).all()
        assert (sources < A).sum() == A and len(sources) == len(owners) * size
        assert (owners[rows // size] == experts).all() and (np.diff(owners.astype(int)) >= 0).all()
        assert len(sources) <= 1.25 * A + size


def test_products_of_a_step_are_at_most_1_3_times_those_of_the_active_weights():
    """8 experts, 2 of them for each token, at the sizes of a step: 1,024 tokens in a lane."""
    rows = len(arrange(mx.zeros(2048, mx.uint32), 8, block_size(2048, 8)).sources)
    assert rows <= 1.3 * 2048


def test_parameters_and_operations_count_the_active_experts_apart():
    config = ModelConfig(n_embd=48, n_head=4, n_layer=2, block_size=32, ffn="moe", ffn_dim=64)
    expert = 3 * 48 * 64
    assert num_params(config, 11) - num_active_params(config, 11) == 2 * 6 * expert
    dense = ModelConfig(n_embd=48, n_head=4, n_layer=2, block_size=32, ffn="swiglu", ffn_dim=128)
    router = 2 * 8 * 48
    assert num_active_params(config, 11) == num_params(dense, 11) + router
    assert flops_per_token(config, 11) == pytest.approx(flops_per_token(dense, 11))


def test_settings_are_checked():
    with pytest.raises(UserError, match="n_expert_per_token=9 is above model.n_expert=8"):
        ModelConfig(ffn="moe", n_expert_per_token=9)
    roles = {name: w.role for name, w in GPT.specs(ModelConfig(**SHAPE, ffn="moe"), 11).items() if ".mlp." in name}
    assert {roles[f"layers.0.mlp.{name}.weight"] for name in ("fc1", "fc_gate", "fc2")} == {"matrices"}
    assert roles["layers.0.mlp.router"] == "scalar"
