"""Random bits and dropout masks."""

import numpy as np
import pytest

from mlx_gpt import rng
from mlx_gpt.device.mlx import mx


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = mx.ones((8, 64, 96))
    y = np.array(rng.dropout(x, rate, rng.key(0, rng.DROPOUT, 3)))
    n = y.size
    assert (y == 0).mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5)
    assert np.allclose(y[y != 0], 1 / (1 - rate))
    # Each slice along each axis is dropped at this rate, within five standard deviations of a binomial proportion.
    for axis in (0, 1, 2):
        others = tuple(i for i in range(3) if i != axis)
        shares, size = (y == 0).mean(others), n // y.shape[axis]
        assert np.abs(shares - rate).max() < 5 * (rate * (1 - rate) / size) ** 0.5


def test_a_batch_in_parts_drops_what_the_whole_drops():
    x, key = mx.ones((6, 5, 7)), rng.key(1, rng.DROPOUT, 2)
    whole = rng.dropout(x, 0.3, key)
    parts = mx.concatenate([rng.dropout(x[i : i + 2], 0.3, key, first_row=i) for i in (0, 2, 4)])
    assert mx.array_equal(whole, parts)


def test_masks_of_layers_and_steps_are_independent():
    x, share = mx.ones((4, 32, 64)), 0.5
    keys = [k for step in range(3) for k in rng.split(rng.key(0, rng.DROPOUT, step), 4)]
    masks = [np.array(rng.dropout(x, share, k)).ravel() > 0 for k in keys]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert (a == b).mean() == pytest.approx(0.5, abs=0.03)
