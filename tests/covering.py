"""Combinations of test parameters: a covering subset by default, all combinations in the slow tests."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest


def covering(*values: Sequence, together: int = 2) -> list:
    """Returns all combinations of one value per parameter, for pytest.mark.parametrize.

    A covering subset of them runs by default: any values of any `together` parameters occur together in at least one
    combination of the subset. With `together=1` every value occurs, with 2 every pair of values. All other combinations
    are marked slow.

    The subset is chosen greedily. Each next combination covers the most tuples of values that are not covered yet. Of
    several such combinations, the one is taken whose values were used least often.

    Example: of the eight combinations of covering((0, 1), (0, 1), (0, 1)), (0, 1, 1) and (1, 0, 0) are marked slow. All
    pairs of their values occur in the other six.

    Args:
        values: The values of each parameter.
        together: The size of the tuples that the subset covers.
    """
    # A combination is a row of indices of values. A tuple of values is a tuple of (parameter, index of its value).
    every = list(itertools.product(*(range(len(v)) for v in values)))
    meetings = {
        row: {tuple((i, row[i]) for i in places) for places in itertools.combinations(range(len(values)), together)}
        for row in every
    }
    missing, chosen, used = set().union(*meetings.values()), set(), Counter()
    while missing:
        best = max(every, key=lambda row: (len(meetings[row] & missing), -sum(used[place] for place in enumerate(row))))
        chosen.add(best)
        missing -= meetings[best]
        used.update(enumerate(best))
    marks = {row: () if row in chosen else pytest.mark.slow for row in every}
    return [pytest.param(*(v[i] for v, i in zip(values, row, strict=True)), marks=marks[row]) for row in every]
