"""The gated delta rule in all its forms, latent attention, and the states of both."""

import numpy as np
import pytest
from networks import HYBRID, LATENT, SHAPE
from references import numpy_delta_rule

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.cost import decoding_bytes, state_bytes
from mlx_gpt.model.mixers.delta_rule import delta_rule, inverse_unit_lower

BOUND = 1e-4


def drawn(T, alike=False, rows=2, heads=3, width=8, values=5):
    """The arguments of delta_rule(). With `alike`, all keys are nearly the same and nothing decays."""
    draw = np.random.default_rng(T)
    q, k = (draw.normal(size=(rows, heads, T, width)) for _ in "qk")
    k = k * 0.05 + 1 if alike else k
    q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    strength = np.full((rows, heads, T), 0.99) if alike else draw.uniform(size=(rows, heads, T))
    log_decay = strength * 0 if alike else -draw.exponential(size=(rows, heads, T))
    v, memory = draw.normal(size=(rows, heads, T, values)), draw.normal(size=(rows, heads, width, values))
    return [a.astype(np.float32) for a in (q, k, v, strength, log_decay, memory)]


def arrays(*values):
    return [mx.array(np.asarray(a, np.float32)) for a in values]


@pytest.mark.parametrize("alike", [False, True], ids=["", "alike"])
@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 31, 64, 65, 127, 200, 1024])
def test_the_chunks_are_the_rule_token_by_token(T, alike):
    given = drawn(T, alike)
    for found, expected in zip(delta_rule(*arrays(*given)), numpy_delta_rule(*given), strict=True):
        np.testing.assert_allclose(found, expected, atol=BOUND)


@pytest.mark.parametrize("pieces", [(1, 1, 1), (3, 70, 1, 6), (64, 64)])
def test_a_text_in_pieces_leaves_the_same_memory(pieces):
    given = arrays(*drawn(sum(pieces)))
    *tokens, memory = given
    first, outs = 0, []
    for count in pieces:
        y, memory = delta_rule(*(a[:, :, first : first + count] for a in tokens), memory)
        outs.append(y)
        first += count
    whole, last = delta_rule(*given)
    np.testing.assert_allclose(mx.concatenate(outs, axis=2), whole, atol=BOUND)
    np.testing.assert_allclose(memory, last, atol=BOUND)


def test_the_published_vector_of_the_plain_rule():
    """Without decay. The memory here is the transposed one of the vector."""
    y, memory = [], mx.zeros((1, 1, 2, 2))
    tokens = [((3, 4), (1, 2), (1, 0), 0.5), ((1, 0), (0, 1), (1, 1), 1.0)]
    for k, v, q, strength in tokens:
        k = np.array(k) / np.linalg.norm(k)
        given = arrays([[[q]]], [[[k]]], [[[v]]], [[[strength]]], [[[0.0]]])
        out, memory = delta_rule(*given, memory)
        y.append((out.flatten().tolist(), memory[0, 0].T.tolist()))
    (y1, S1), (y2, S2) = y
    np.testing.assert_allclose(y1, (0.3, 0.6), atol=1e-6)
    np.testing.assert_allclose(S1, [[0.3, 0.4], [0.6, 0.8]], atol=1e-6)
    np.testing.assert_allclose(y2, (0.4, 1.8), atol=1e-6)
    np.testing.assert_allclose(S2, [[0, 0.4], [1, 0.8]], atol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_inverse_and_its_gradient(size):
    draw = np.random.default_rng(size)
    a, cotangent = np.tril(draw.normal(size=(2, size, size)) * 0.3, -1), draw.normal(size=(2, size, size))
    (found,), (gradient,) = mx.vjp(inverse_unit_lower, arrays(a), arrays(cotangent))
    inverse = np.linalg.inv(a + np.eye(size))
    scale = np.abs(inverse).max()
    np.testing.assert_allclose(found, inverse, atol=1e-5 * scale)
    transposed = inverse.swapaxes(-1, -2)
    expected = np.tril(-(transposed @ cotangent @ transposed), -1)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("T", [5, 70])
def test_gradients_of_the_chunks_are_those_of_single_steps(T):
    given = arrays(*drawn(T))

    def total(read):
        def loss(*tokens):
            *tokens, memory = tokens
            y, memory = read(*tokens, memory)
            return (y * mx.sin(mx.arange(y.size).reshape(y.shape))).sum() + (memory * memory).sum()

        return mx.grad(loss, argnums=list(range(6)))(*given)

    def stepped(*tokens):
        *tokens, memory = tokens
        outs = []
        for t in range(T):
            y, memory = delta_rule(*(a[:, :, t : t + 1] for a in tokens), memory)
            outs.append(y)
        return mx.concatenate(outs, axis=2), memory

    for found, expected in zip(total(delta_rule), total(stepped), strict=True):
        np.testing.assert_allclose(found, expected, atol=BOUND * max(1, mx.abs(expected).max().item()))


@pytest.mark.parametrize(
    "settings, per_token, per_sequence",
    [
        ({}, 2 * 2 * 24, 0),  # keys and values of two layers
        ({"n_kv_head": 1}, 2 * 2 * 6, 0),
        (LATENT, 2 * (6 + 4), 0),  # the latent and one key of two layers
        (HYBRID, 2 * 24, 4 * 6 * 6 + 3 * 3 * 24),  # one layer of each: the memories, and inputs of the convolution
        ({"mixers": ["gated_delta"]}, 0, 2 * (4 * 6 * 6 + 3 * 3 * 24)),
    ],
    ids=str,
)
def test_the_state_grows_with_the_tokens_or_not(settings, per_token, per_sequence):
    for length in (1, 16, 1024):
        config = ModelConfig(**SHAPE | settings | {"block_size": length})
        found = decoding_bytes(config)
        assert found == {
            "decoding_bytes_per_token": 4 * per_token,
            "decoding_bytes_per_sequence": 4 * per_sequence,
        }
        assert state_bytes(config, 3) == 3 * 4 * (per_token * length + per_sequence)


def test_settings_of_the_mixers_are_checked():
    assert ModelConfig(n_layer=20, delta_ratio=0.2).mixer_of.count("gated_delta") == 4
    assert [i for i, m in enumerate(ModelConfig(n_layer=20, delta_ratio=0.2).mixer_of) if m == "gated_delta"] == [
        *(2, 7, 12, 17)
    ]
    with pytest.raises(UserError, match="qk_rope_head_dim=5 is odd, .* choose 6"):
        ModelConfig(qk_rope_head_dim=5)
    with pytest.raises(UserError, match="rope_scale needs more than 2 rotary .* larger model.qk_rope_head_dim"):
        ModelConfig(mixers=("mla",), qk_rope_head_dim=2, rope_scale=2.0)
