"""Curves in bounded memory."""

import random

import pytest

from mlx_gpt.watch.series import MAX_BINS, MAX_FIELDS, Series


def filled(values, stamp=1):
    series = Series()
    for step, value in values:
        series.add(step, {"step": float(step), "loss": value}, stamp)
    return series


def test_a_short_series_is_kept_as_it_is():
    found = filled([(n, 1 / n) for n in range(1, 101)]).columns()
    assert found["width"] == 1 and found["bins"] == list(range(1, 101))
    mean, low, high = found["fields"]["loss"]
    assert mean == low == high == pytest.approx([1 / n for n in range(1, 101)], rel=1e-6)
    assert found["fields"]["step"][0] == list(range(1, 101))


@pytest.mark.parametrize("count", [MAX_BINS + 1, 4_321])
def test_extremes_and_means_of_a_long_series_are_kept(count):
    draw = random.Random(count)
    values = [(step, draw.gauss(3, 1)) for step in range(1, count + 1)]
    values[count // 2] = (count // 2 + 1, 1e6)
    found = filled(values).columns()
    width, (mean, low, high) = found["width"], found["fields"]["loss"]
    assert MAX_BINS / 2 <= len(found["bins"]) <= MAX_BINS and width & (width - 1) == 0
    assert max(high) == 1e6 and min(low) == pytest.approx(min(v for _, v in values), rel=1e-6)
    for bin, m, lo, hi in zip(found["bins"], mean, low, high, strict=True):
        inside = [value for step, value in values if step // width == bin]
        assert (m, lo, hi) == pytest.approx((sum(inside) / len(inside), min(inside), max(inside)), rel=1e-6)


def test_steps_in_any_order_and_far_apart_take_bounded_memory():
    draw = random.Random(0)
    series = Series()
    for _ in range(6_000):
        series.add(draw.choice([draw.randrange(100), draw.randrange(1 << 20), draw.randrange(1 << 62)]), {"x": 1.0}, 1)
    assert len(series) <= MAX_BINS
    assert series.columns()["bins"] == sorted(series.columns()["bins"])


def test_the_means_of_a_long_run_are_few_and_keep_its_mean():
    series, losses = Series(), [random.Random(0).random() for _ in range(1 << 14)]
    for step, loss in enumerate(losses):
        series.add(step, {"step": float(step), "loss": loss, **({"rare": 1.0} if step < 20 else {})}, 1)
    means = series.means("step", "loss")
    assert len(means) <= MAX_BINS and means == sorted(means)
    assert sum(loss for _, loss in means) / len(means) == pytest.approx(sum(losses) / len(losses), abs=1e-3)
    assert len(series.means("rare", "loss")) == -(-20 // series.width) and series.means("absent") == []


def test_too_many_fields_are_dropped_and_counted():
    series = Series()
    series.add(1, {f"f{n}": 1.0 for n in range(MAX_FIELDS + 5)}, 1)
    assert len(series.columns()["fields"]) == MAX_FIELDS and series.num_dropped == 5


def test_changes_added_to_what_was_known_are_the_whole():
    """A reader that asks for changes after the last stamp holds the same bins as one that asks for all of them."""
    draw, series, held, seen = random.Random(1), Series(), {}, 0
    for stamp in range(1, 60):
        for _ in range(draw.randrange(80)):
            values = {"loss": draw.random()} | ({"rare": 1.0} if draw.random() < 0.1 else {})
            series.add(draw.randrange(20 * stamp), values, stamp)
        if series.rebuilt > seen:
            held, seen = {}, 0
        found = series.columns(seen)
        for i, bin in enumerate(found["bins"]):
            held[bin] = {name: [part[i] for part in lists] for name, lists in found["fields"].items()}
        seen = stamp
    whole = series.columns()
    for i, bin in enumerate(whole["bins"]):
        for name, lists in whole["fields"].items():
            assert held[bin].get(name, [None] * 3) == [part[i] for part in lists]
    assert held.keys() == set(whole["bins"])
