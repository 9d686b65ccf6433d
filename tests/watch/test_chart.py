"""The chart of the losses."""

import math
import random

import pytest

from mlx_gpt.watch.chart import LABEL, LossChart


def chart_of(training, validation=()):
    chart = LossChart()
    for is_validation, points in enumerate((training, validation)):
        for step, loss in points:
            chart.add(step, loss, bool(is_validation))
    return chart


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width, height", [(80, 6), (11, 1), (40, 3)])
def test_every_line_has_the_width_of_the_chart(width, height, ascii_only):
    draw = random.Random(0)
    curve = [(n, 2 + math.exp(-n / 99) + draw.gauss(0, 0.1)) for n in range(1, 400)]
    lines = chart_of(curve, curve[::20]).render(width, height, ascii_only)
    assert [line.cell_len for line in lines] == [width] * height
    assert all(ord(c) < 128 for line in lines for c in line.plain) or not ascii_only


def test_a_falling_loss_falls_from_the_left_to_the_right():
    lines = [line.plain[LABEL:] for line in chart_of([(n, 20 - n) for n in range(1, 19)]).render(LABEL + 18, 18, True)]
    columns = [line.index(".") for line in lines if "." in line]
    assert columns == sorted(columns) and len(set(columns)) > 10


def test_the_labels_are_the_losses_at_the_edges_and_the_first_losses_may_be_above():
    lines = chart_of([(n, 100.0 if n < 5 else 3.0 - n / 100) for n in range(1, 101)]).render(40, 4)
    assert lines[0].plain.split()[0] == "2.89" and lines[-1].plain.split()[0] == "2"


def test_a_run_without_two_losses_has_no_chart():
    for points in ([], [(1, 3.0)], [(2, math.nan), (3, math.inf)], [(4, 1.0), (4, 2.0)]):
        assert chart_of(points).render(40, 4) == []
    assert len(chart_of([(1, 2.0), (2, 2.0)]).render(40, 4)) == 4
