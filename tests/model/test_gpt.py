"""The network: parameters, causality, the cache, ranges, and an independent implementation in NumPy."""

import json

import numpy as np
import pytest
from devices import tolerance
from networks import NETWORKS, SHAPE, names, network
from references import numpy_gpt

from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.cost import num_params
from mlx_gpt.model.gpt import GPT, shapes_of
from mlx_gpt.model.state import put_row

NETWORK = tolerance("float32 network")


@pytest.fixture(scope="module", params=NETWORKS, ids=names)
def model(request):
    return network(request.param)


def test_the_network_is_its_rules(model):
    tokens = np.random.default_rng(0).integers(0, 11, 16)
    expected = numpy_gpt(model.weights(), tokens, model.config)
    np.testing.assert_allclose(
        model(tokens[None])[0],
        expected,
        rtol=2 * NETWORK,
        atol=2 * NETWORK * np.abs(expected).max(),
    )


@pytest.mark.parametrize("settings", NETWORKS, ids=names)
def test_weights_are_named_shaped_and_counted_as_the_config_says(settings):
    config = ModelConfig(**SHAPE, **settings)
    assert config.extensions() == [f"model.{k}={json.dumps(v)}" for k, v in settings.items()]
    weights = GPT(config, 67).weights()
    assert {k: w.shape for k, w in weights.items()} == dict(sorted(shapes_of(config, 67).items()))
    assert sum(w.size for w in weights.values()) == num_params(config, 67)
    assert list(weights) == sorted(weights)


def test_initial_weights_have_their_spreads():
    config = resolve("model-m").model
    weights = GPT(config, 67, seed=1).weights()
    for name, std in {
        "wte": 0.02,
        "wpe": 0.01,
        "lm_head": 0.02,
        "layers.0.attn.wq": 0.02,
        "layers.2.attn.wo": 0.02 / 12**0.5,
        "layers.0.mlp.fc1": 0.02,
        "layers.1.mlp.fc2": 0.02 / 12**0.5,
    }.items():
        assert weights[f"{name}.weight"].std().item() == pytest.approx(std, rel=0.03), name
    again, other = GPT(config, 67, seed=1).weights(), GPT(config, 67, seed=2).weights()
    assert mx.array_equal(weights["wte.weight"], again["wte.weight"])
    assert not mx.array_equal(weights["wte.weight"], other["wte.weight"])


def test_a_token_changes_no_logit_before_it(model):
    tokens = np.random.default_rng(1).integers(0, 11, (1, 16))
    before = np.array(model(tokens))
    for t in range(16):
        changed = tokens.copy()
        changed[0, t] = (changed[0, t] + 1) % 11
        after = np.array(model(changed))
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert np.abs(after[0, t:] - before[0, t:]).max() > 1e-3


@pytest.mark.parametrize("prefill", [1, 2, 7, 15])
def test_prefill_and_single_steps_give_the_full_pass(model, prefill):
    tokens = mx.array(np.random.default_rng(2).integers(0, 11, (2, 16)))
    full, state = np.array(model(tokens)), model.new_state(2)
    parts = [model.forward(tokens[:, :prefill], state=state)[0]]
    parts += [model.forward(tokens[:, t : t + 1], state=state)[0] for t in range(prefill, 16)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=NETWORK, rtol=0)


def test_rows_of_a_batch_continue_each_from_its_own_position(model):
    tokens, lengths = np.random.default_rng(4).integers(0, 11, (3, 16)), [2, 7, 15]
    _, layers = model.new_state(3).tree
    for i, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
        state, padded = model.new_state(1), np.pad(row[:length], (0, 16 - length))
        model.forward(mx.array(padded[None]), state=state, valid=mx.array([length]))
        assert state.tree[0].tolist() == [length]
        layers = put_row(layers, state.tree[1], mx.array(i))
    together = model.state_of((mx.array(lengths), layers))
    found, _ = model.forward(mx.array(tokens[range(3), lengths][:, None]), state=together)
    for row, length, logits in zip(tokens, lengths, np.array(found), strict=True):
        expected = np.array(model(row[None]))[0, length]
        np.testing.assert_allclose(logits[0], expected, atol=NETWORK, rtol=0)


@pytest.mark.parametrize("tokens", [[[11]], [[-1]], [[0] * 17], [0, 1], [[0.5]], [[]], [[1, 2], [3]], "text"])
def test_ids_and_positions_out_of_range_are_refused(model, tokens):
    with pytest.raises(UserError, match="tokens"):
        model(tokens)


def test_apply_leaves_the_models_own_weights(model):
    before = model.weights()
    zeros = {k: mx.zeros_like(w) for k, w in before.items()}
    assert mx.abs(model.apply(zeros, mx.array([[1, 2]]))[0]).max().item() == 0
    assert all(mx.array_equal(w, before[k]) for k, w in model.weights().items())
