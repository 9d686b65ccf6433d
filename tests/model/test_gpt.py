"""The network: parameters, ranges, and an independent implementation in NumPy."""

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


@pytest.mark.parametrize("tokens", [[[11]], [[-1]], [[0] * 17], [0, 1], [[0.5]], [[]], [[1, 2], [3]], "text"])
def test_ids_and_positions_out_of_range_are_refused(model, tokens):
    with pytest.raises(UserError, match="tokens"):
        model(tokens)


def test_apply_leaves_the_models_own_weights(model):
    before = model.weights()
    zeros = {k: mx.zeros_like(w) for k, w in before.items()}
    assert mx.abs(model.apply(zeros, mx.array([[1, 2]]))[0]).max().item() == 0
    assert all(mx.array_equal(w, before[k]) for k, w in model.weights().items())
