"""Mixed residual streams: the published vectors, doubly stochastic matrices, and streams that do not stay equal."""

import itertools

import numpy as np
import pytest
from networks import SHAPE

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.mhc import MixedStreams, permutations
from mlx_gpt.model.residual import Add
from mlx_gpt.train.objective import cross_entropy

COUNTS = [2, 4]


def config(count, **settings):
    return ModelConfig(**(SHAPE | {"n_layer": 3}), residual="mhc", n_stream=count, **settings)


def unit(count, number=0, **weights):
    made = MixedStreams(config(count), number)
    for name, weight in MixedStreams.specs(config(count), number).items():
        setattr(made, name, mx.array(weights.get(name, weight.init(weight.shape, mx.random.key(0)))))
    return made


def stream(*values):
    return mx.array(values).reshape(len(values), 1, 1, 1)


def test_the_published_vectors():
    pre, post = unit(2, pre=[0.5, 0.5]), unit(2, mix=[0.7], post=[0.5, -0.3])
    assert pre.read(stream(1.0, 0.0)).item() == pytest.approx(0.622459, abs=1e-6)
    written = post.write(stream(1.0, 3.0), mx.array(2.0).reshape(1, 1, 1))
    np.testing.assert_allclose(written.flatten(), [4.153461, 4.038605], atol=1e-6)
    four = unit(4, mix=[10.0] + [0.0] * 23)
    assert mx.softmax(four.mix)[0].item() == pytest.approx(0.998957, abs=1e-6)


def test_permutations_are_in_lexicographic_order():
    found = permutations(4)
    assert (
        found.shape == (24, 4, 4) and mx.array_equal(found[0], mx.eye(4)) and mx.array_equal(found[23], mx.eye(4)[::-1])
    )
    orders = [tuple(row) for row in np.array(found.argmax(axis=-1)).tolist()]
    assert orders == sorted(set(itertools.permutations(range(4))))


@pytest.mark.parametrize("count", COUNTS)
def test_every_matrix_is_doubly_stochastic_and_no_depth_makes_a_stream_larger(count):
    draw, product = np.random.default_rng(0), np.eye(count)
    for i in range(256):
        size = len(unit(count).mix)
        logits = np.full(size, 100.0 * (-1) ** i) if i < 2 else draw.normal(size=size) * 5
        matrix = np.array(unit(count, mix=logits.astype(np.float32)).matrix(), np.float64)
        assert (matrix >= 0).all()
        np.testing.assert_allclose([matrix.sum(0), matrix.sum(1)], 1, atol=1e-6)
        product = matrix @ product
        assert max(np.abs(product).sum(0).max(), np.abs(product).sum(1).max()) <= 1 + 1e-4


@pytest.mark.parametrize("count", COUNTS)
def test_without_mixing_it_is_the_usual_residual(count):
    """H = I, and each stream is read with 1 / N and written with 1."""
    size = len(unit(count).mix)
    mix = np.full(size, -1e9, np.float32)
    mix[0] = 1e9 if count == 2 else 0
    made = unit(count, mix=mix, pre=[float(np.log(1 / (count - 1)))] * count, post=[0.0] * count)
    plain, x, y = Add(config(count), 0), mx.random.normal((2, 5, 24)), mx.random.normal((2, 5, 24))
    s = made.expand(x)
    for _ in range(3):
        np.testing.assert_allclose(made.read(s), plain.read(x), atol=1e-6)
        s, x = made.write(s, y), plain.write(x, y)
        np.testing.assert_allclose(made.collapse(s), x, atol=1e-5)


def loss_of(model, tokens):
    return lambda weights: cross_entropy(model.apply(weights, tokens[:, :-1])[0], tokens[:, 1:]).mean()


@pytest.mark.parametrize("count", COUNTS)
def test_streams_differ_in_the_middle_and_all_mixing_weights_but_the_outer_ones_learn(count):
    """At the start and after 20 steps. Copied streams give the first unit's weights no gradient, and the mean of the
    streams gives the last one's none."""
    model, tokens = GPT(config(count), 11, seed=1), mx.array(np.random.default_rng(0).integers(0, 11, (4, 16)))
    weights = {name: w * 8 if w.ndim > 1 else w for name, w in model.weights().items()}
    units = [f"layers.{i}.{half}_residual" for i in range(3) for half in ("attn", "mlp")]
    for step in range(21):
        gradients = mx.grad(loss_of(model, tokens))(weights)
        if step in (0, 20):
            norms = [mx.abs(gradients[f"{name}.mix"]).max().item() for name in units]
            assert max(norms[0], norms[-1]) < 0.1 * min(norms[1:-1]), norms
            assert all(mx.abs(gradients[f"{name}.{part}"]).max() > 0 for name in units for part in ("pre", "post"))
        weights = {name: w - 0.01 * gradients[name] for name, w in weights.items()}
        mx.eval(weights)
    model.set_weights(weights)
    s = model.layers[0].attn_residual.expand(model.wte(tokens[:, :-1]))
    positions = model.new_state(4).next(15)
    for block in model.layers[:2]:
        s, _ = block(s, None, positions, None, lambda x: x, lambda x: x)
    differences = [mx.abs(s[i] - s[j]).max().item() for i, j in itertools.combinations(range(count), 2)]
    assert min(differences) > 1e-3 * mx.abs(s).max().item()


def test_the_weights_are_few_and_stay_float32():
    specs = GPT.specs(config(2), 11)
    own = {name: weight for name, weight in specs.items() if "_residual." in name}
    assert len(own) == 6 * 3 and all(w.float32 and w.role == "scalar" for w in own.values())
    assert sum(w.shape[0] for w in own.values()) == 6 * (1 + 2 + 2)
    assert sum(w.shape[0] for n, w in GPT.specs(config(4), 11).items() if "_residual." in n) == 6 * (24 + 4 + 4)
    with pytest.raises(UserError, match="n_stream=3 is not allowed; give 2 or 4"):
        ModelConfig(n_stream=3)
