"""Ternary layers: the specified vectors, NumPy's integers, MLX's 2-bit products, and gradients of the identity."""

import numpy as np
import pytest
from devices import tolerance
from networks import SHAPE, TERNARY, network
from references import ternary

from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model import linear
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.linear import BitLinear
from mlx_gpt.model.specs import Constant
from mlx_gpt.model.ternary import dequantize, int8_rows, quantize, two_bit, two_bit_group

GROUPS = ("tensor", "row", "128", "64")


def matrix(rows, columns, seed=0):
    return mx.array(np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32) * 0.02)


def layer(group="tensor", inputs=256, outputs=96, **settings):
    config = ModelConfig(n_embd=256, n_head=4, linear="ternary", ternary_group=group, **settings)
    made = BitLinear(config, inputs, outputs)
    made.weight = matrix(outputs, inputs)
    return made


def test_the_published_vectors():
    trits, scales = quantize(mx.array([[0.10, -0.02, 0.02, -0.20, 0.05, 0, -0.07, 0.01]]), "row")
    assert trits.tolist() == [[1, 0, 0, -1, 1, 0, -1, 0]]
    assert scales.item() == float(np.float16(0.05875))
    x = mx.array([[1, -0.5, 0.25, 2, -1.5, 0.1, 0, 0.75]])
    rounded = int8_rows(x)
    np.testing.assert_allclose(rounded * 127 / 2, [[64, -32, 16, 127, -95, 6, 0, 48]], atol=1e-4)
    assert (rounded @ dequantize(trits, scales).T).item() == pytest.approx(-0.146172, abs=1e-6)


@pytest.mark.parametrize("group", GROUPS)
def test_the_matrix_is_the_rule_in_numpy(group):
    w = matrix(96, 256)
    trits, scales = (np.array(a) for a in quantize(w, group))
    rows = np.array(w).reshape(-1, {"tensor": w.size, "row": 256}.get(group) or int(group))
    means = np.abs(rows).mean(-1, keepdims=True, dtype=np.float64)
    assert np.array_equal(scales, scales.astype(np.float16))
    # Sums in another order may round to the float16 beside it.
    np.testing.assert_allclose(scales.reshape(-1, 1), means, rtol=2**-11 + 1e-5)
    expected = np.clip(np.round(rows / scales.reshape(-1, 1)), -1, 1)
    np.testing.assert_array_equal(trits.reshape(rows.shape), expected)
    found = np.array(dequantize(mx.array(trits), mx.array(scales)))
    np.testing.assert_array_equal(found.reshape(rows.shape), expected * scales.reshape(-1, 1))


def test_halves_round_to_even_and_a_group_of_zeros_stays_zero():
    """With the scale 1, 0.5 is a tie between 0 and 1, and 1.5 between 1 and 2."""
    trits, scales = quantize(mx.array([[0.5, -0.5, 1.5, 1.5], [0, 0, 0, 0]]), "row")
    assert trits.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]] and scales.tolist() == [[1], [0]]
    tiny = mx.full((1, 4), 1e-9)  # its mean is below the smallest number of float16
    assert not mx.any(dequantize(*quantize(tiny, "tensor"))).item()
    assert not mx.any(int8_rows(mx.zeros((2, 4)))).item()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("shape", [(96, 256), (17, 128), (1, 384), (63, 128)])
def test_three_ways_to_multiply_agree(group, activations, shape):
    """NumPy's integers, the unpacked product, and MLX's product of 2-bit codes."""
    w, x = matrix(*shape), mx.array(np.random.default_rng(1).normal(size=(5, shape[1])).astype(np.float32))
    x = int8_rows(x) if activations == "int8" else x
    trits, scales = quantize(w, group)
    size = two_bit_group(shape[1], scales.shape[1])
    codes, steps, biases = two_bit(trits, scales, size)
    plain = np.array(x, np.float64) @ np.array(dequantize(trits, scales), np.float64).T
    two_bits = mx.quantized_matmul(x, codes, steps, biases, group_size=size, bits=2)
    assert mx.array_equal(mx.dequantize(codes, steps, biases, group_size=size, bits=2), dequantize(trits, scales))
    for found in (x @ dequantize(trits, scales).T, two_bits):
        np.testing.assert_allclose(found, plain, atol=tolerance("float32 product") * max(np.abs(plain).max(), 1))
    if activations == "int8":  # sums of integers in each group, then the scales
        steps = np.abs(np.array(x)).max(-1, keepdims=True) / 127
        integers = np.round(np.array(x) / steps).astype(np.int64).reshape(5, scales.shape[-1], -1)
        trits = np.array(trits).astype(np.int64).reshape(shape[0], scales.shape[-1], -1)
        sums = np.einsum("bgc,rgc->brg", integers, trits)
        assert np.abs(integers).max() == 127
        np.testing.assert_allclose((sums * np.array(scales)).sum(-1) * steps, plain, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"ternary_activations": "int8"}])
def test_gradients_are_those_of_the_ternary_matrix_as_if_nothing_was_rounded(settings):
    made = layer(**settings)
    x, dy = matrix(7, 256, 1) * 50, matrix(7, 96, 2)

    def forward(w, x):
        made.weight = w
        return made(x)

    _, (dw, dx) = mx.vjp(forward, [matrix(96, 256), x], [dy])
    rounded = int8_rows(x) if settings else x
    np.testing.assert_allclose(dw, np.array(dy).T @ np.array(rounded), atol=1e-5)
    np.testing.assert_allclose(dx, np.array(dy) @ ternary(matrix(96, 256), "tensor"), atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("settings", [{}, {"ternary_activations": "int8", "ternary_norm": True}], ids=["", "int8+norm"])
@pytest.mark.parametrize("gpu", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_a_packed_layer_computes_the_same(group, settings, gpu, monkeypatch):
    monkeypatch.setattr(linear, "on_gpu", lambda: gpu)
    made, x = layer(group, **settings), matrix(7, 256, 1) * 50
    packed = made.pack()
    assert ("codes" in packed) == gpu and ("weight" in packed) != gpu
    np.testing.assert_allclose(packed(x), made(x), atol=tolerance("float32 product"))


def test_a_width_that_no_group_divides_is_refused():
    with pytest.raises(UserError, match="ternary_group=128 does not divide 24, the width"):
        BitLinear.specs(ModelConfig(**SHAPE, linear="ternary", ternary_group="128"), 24, 24, Constant(0.0))


def test_the_group_is_a_number_in_a_file_too(tmp_path):
    (tmp_path / "own.toml").write_text('[model]\nlinear = "ternary"\nternary_group = 128\n')
    found = resolve(str(tmp_path / "own.toml")).model
    assert found == ModelConfig(linear="ternary", ternary_group=128) and found.ternary_group == "128"
    with pytest.raises(UserError, match="ternary_group=100 is not allowed"):
        ModelConfig(ternary_group=100)


def test_in_half_precision_the_trits_are_those_of_the_float32_weights():
    """The other weights are rounded to bfloat16. The shadow weights are not: rounding moves some of them."""
    model = network(TERNARY)
    cast = model.cast(model.weights(), "bfloat16")
    kept = {name for name, w in cast.items() if w.dtype == mx.float32}
    assert kept == {name for name in cast if ".attn.w" in name or ".mlp.fc" in name}
    assert model.apply(cast, mx.array([[1, 2, 3]]))[0].dtype == mx.bfloat16


@pytest.mark.parametrize("settings", [{}, {"ternary_activations": "int8"}], ids=["float", "int8"])
def test_a_packed_network_computes_the_same_logits(settings):
    model = network(TERNARY | settings)
    tokens = mx.array([[1, 2, 3, 4, 5]])
    logits, packed = model(tokens), model.packed()
    assert packed is not model
    np.testing.assert_allclose(packed(tokens), logits, atol=1e-4 * mx.abs(logits).max().item())


def test_the_norm_and_the_embedding_are_not_ternary():
    roles = {name: weight.float32 for name, weight in GPT.specs(ModelConfig(**SHAPE, **TERNARY), 11).items()}
    assert not any(roles[name] for name in ("wte.weight", "final_norm.weight", "layers.0.attn_norm.weight"))
