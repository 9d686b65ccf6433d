"""The gradient of a lookup: every way to compute it is the scatter, and a GPU's way is the one in use there."""

import io

import numpy as np
import pytest
from devices import tolerance

from mlx_gpt.device.mlx import mx
from mlx_gpt.model import embedding
from mlx_gpt.model.embedding import GRADIENTS, Embedding

PRODUCT = tolerance("float32 product")

SIZES = [(1, 1, 3), (7, 4, 5), (300, 67, 16), (500, 2000, 8)]  # N ids, V, C


def drawn(count, vocab_size, width, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, vocab_size, count).astype(np.int32), draw.normal(size=(count, width)).astype(np.float32)


def definition(ids, cotangents, vocab_size):
    total = np.zeros((vocab_size, cotangents.shape[1]))
    np.add.at(total, ids, cotangents)
    return total


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_gradient_is_the_sum_over_equal_ids(name, size):
    """Sums of small integers are exact in every order, so all gradients must be equal bit for bit."""
    ids, cotangents = drawn(*size)
    found = GRADIENTS[name](mx.array(ids), mx.array(cotangents), size[1])
    np.testing.assert_allclose(found, definition(ids, cotangents, size[1]), atol=PRODUCT, rtol=0)
    whole = np.round(cotangents * 100)
    found = GRADIENTS[name](mx.array(ids), mx.array(whole), size[1])
    np.testing.assert_array_equal(found, definition(ids, whole, size[1]))


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_keeps_the_type_of_its_cotangents(name):
    ids, cotangents = drawn(40, 9, 4)
    found = GRADIENTS[name](mx.array(ids), mx.array(np.round(cotangents * 4)).astype(mx.bfloat16), 9)
    assert found.dtype == mx.bfloat16
    np.testing.assert_array_equal(found.astype(mx.float32), definition(ids, np.round(cotangents * 4), 9))


@pytest.mark.parametrize("device, vocab_size", [("cpu", 30), ("metal", 30), ("metal", 3000), ("cuda", 3000)])
def test_only_a_cpu_scatters(device, vocab_size, monkeypatch):
    """The gradient that each device would use, computed here, with ids (2, 50) and inside a compiled function."""
    monkeypatch.setattr(embedding, "kind", lambda: device)
    table, (ids, cotangents) = Embedding(vocab_size, 4), drawn(100, vocab_size, 4)

    def loss(weight, ids, factors):
        table.weight = weight
        return (table(ids) * factors).sum()

    arguments = table.weight, mx.array(ids.reshape(2, 50)), mx.array(cotangents.reshape(2, 50, 4))
    found = mx.compile(mx.grad(loss))(*arguments)
    np.testing.assert_allclose(found, definition(ids, cotangents, vocab_size), atol=PRODUCT, rtol=0)
    mx.export_to_dot(graph := io.StringIO(), mx.grad(loss)(*arguments))
    assert ("Scatter" in graph.getvalue()) == (device == "cpu")
