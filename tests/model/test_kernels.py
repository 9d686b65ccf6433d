"""Every way to attend is the same function: values and gradients against the definition, in float64 by NumPy."""

import numpy as np
import pytest
from devices import tolerance

from mlx_gpt.config.presets import names_of, resolve
from mlx_gpt.device.mlx import DTYPES, mx
from mlx_gpt.model.mixers import kernels
from mlx_gpt.model.mixers.kernels import FUSED_HEAD_DIMS, KERNELS, kernel_of, make_attend

SHAPES = [(2, 3, 64, 8), (1, 1, 1, 4), (1, 2, 7, 5), (2, 1, 33, 32), (1, 2, 16, 48), (1, 1, 20, 64)]  # (B, H, T, D)


def draw(shape, seed=0, size=1.0):
    return np.random.default_rng(seed).normal(size=shape) * size


def definition(q, k, v, dout, scale):
    """Output and gradients of softmax(scale q k^T) v over the past, written out."""
    t = np.swapaxes
    scores = np.where(np.tri(q.shape[2], dtype=bool), scale * q @ t(k, -1, -2), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = dout @ t(v, -1, -2)
    ds = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    return p @ v, ds @ k, t(ds, -1, -2) @ q, t(p, -1, -2) @ dout


def run(attend, arrays, dout, scale, dtype=mx.float32):
    *primals, cotangent = (mx.array(a.astype(np.float32)).astype(dtype) for a in (*arrays, dout))
    (out,), grads = mx.vjp(lambda *qkv: attend(*qkv, scale), primals, [cotangent])
    return [np.array(a.astype(mx.float32), np.float64) for a in (out, *grads)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way, query_blocks", [("fused", 1), ("padded", 1), *(("blocks", n) for n in (1, 2, 4, 5, 99))])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients_are_the_definition(way, query_blocks, shape, compiled):
    arrays, dout, scale = [draw(shape, s) for s in range(3)], draw(shape, 3), shape[-1] ** -0.5
    attend = make_attend(way, query_blocks)
    found = run(mx.compile(attend) if compiled else attend, arrays, dout, scale)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, definition(*arrays, dout, scale), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance("float32 product"), err_msg=name)


@pytest.mark.parametrize("way", sorted(KERNELS))
@pytest.mark.parametrize("shared", [2, 4], ids="{} query heads per key".format)
def test_shared_keys_and_values_are_repeated_ones(way, shared):
    q, dout = draw((2, 4, 24, 8)), draw((2, 4, 24, 8), 3)
    k, v = (draw((2, 4 // shared, 24, 8), s) for s in (1, 2))
    out, dq, dk, dv = definition(q, *(a.repeat(shared, axis=1) for a in (k, v)), dout, 0.3)
    dk, dv = (a.reshape(2, -1, shared, 24, 8).sum(2) for a in (dk, dv))
    found = run(make_attend(way), (q, k, v), dout, 0.3)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, (out, dq, dk, dv), strict=True):
        np.testing.assert_allclose(a, b, atol=2 * tolerance("float32 product"), err_msg=name)


@pytest.mark.parametrize("way", sorted(KERNELS))
@pytest.mark.parametrize("size", [30.0, 1e-4])
def test_scores_far_apart_or_alike_lose_nothing(way, size):
    """Scores of thousands: the softmax is a choice, no sum is empty, nothing overflows."""
    shape = (1, 2, 32, 16)
    arrays, dout = [draw(shape, s, size) for s in range(3)], draw(shape, 3)
    found, expected = run(make_attend(way), arrays, dout, 0.25), definition(*arrays, dout, 0.25)
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("way", sorted(KERNELS))
def test_half_precision_keeps_its_type_and_stays_close(way):
    shape = (1, 2, 32, 16)
    arrays, dout = [draw(shape, s) for s in range(3)], draw(shape, 3)
    out = make_attend(way)(*(mx.array(a).astype(mx.bfloat16) for a in arrays), 0.25)
    assert out.dtype == mx.bfloat16
    found, expected = run(make_attend(way), arrays, dout, 0.25, mx.bfloat16), definition(*arrays, dout, 0.25)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance("bfloat16 product"))


DEVICES = ["cpu", "metal", "cuda"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", names_of("presets"))
def test_no_preset_uses_an_unfused_attention(device, dtype, preset, monkeypatch):
    """MLX's own function is chosen only where it has a fused kernel."""
    model = resolve(preset).model
    monkeypatch.setattr(kernels, "kind", lambda: device)
    found = kernel_of("auto", model.head_dim, model.block_size, DTYPES[dtype])
    if device == "metal":
        other = "blocks" if model.head_dim < 32 else "padded"
        assert found == ("fused" if model.head_dim in FUSED_HEAD_DIMS else other)
    else:
        fits = dtype != "float32" and model.head_dim % 8 == 0 and model.block_size % 128 == 0
        assert found == ("fused" if device == "cuda" and fits else "blocks")
    assert kernel_of("fused", model.head_dim, model.block_size, DTYPES[dtype]) == "fused"  # what the user asks for


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [8, 32, 64, 100, 256, 300])
def test_what_a_device_chooses_is_the_definition(device, width, monkeypatch):
    monkeypatch.setattr(kernels, "kind", lambda: device)
    arrays, dout = [draw((1, 2, 9, width), s) for s in range(3)], draw((1, 2, 9, width), 3)
    scale = width**-0.5
    for a, b in zip(run(make_attend(), arrays, dout, scale), definition(*arrays, dout, scale), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance("float32 product"))
    chosen = kernel_of("auto", width, 9, mx.float32)
    assert chosen != "padded" or width < max(kernels.FUSED_HEAD_DIMS)


@pytest.mark.parametrize("width, value_width, expected", [(64, 64, "fused"), (64, 48, "padded"), (48, 64, "padded")])
def test_values_of_another_width_are_padded_for_a_fused_kernel(width, value_width, expected, monkeypatch):
    monkeypatch.setattr(kernels, "kind", lambda: "metal")
    called = []
    for name, kernel in KERNELS.items():
        monkeypatch.setitem(KERNELS, name, lambda *a, n=name, k=kernel, **o: called.append(n) or k(*a, **o))
    q, k, dout = draw((1, 2, 9, width)), draw((1, 2, 9, width), 1), draw((1, 2, 9, value_width), 3)
    arrays = q, k, draw((1, 2, 9, value_width), 2)
    for a, b in zip(run(make_attend(), arrays, dout, 0.2), definition(*arrays, dout, 0.2), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance("float32 product"))
    assert called == [expected]


def test_a_token_sees_nothing_behind_it():
    shape = (1, 1, 24, 8)
    q, k, v = (mx.array(draw(shape, s).astype(np.float32)) for s in range(3))
    for way in KERNELS:
        attend = make_attend(way, 3)
        before = np.array(attend(q, k, v, 0.3))
        for t in (5, 8, 23):
            rest = mx.arange(24)[:, None] >= t
            after = np.array(attend(q, mx.where(rest, 9.0, k), mx.where(rest, 9.0, v), 0.3))
            np.testing.assert_array_equal(after[..., :t, :], before[..., :t, :])
