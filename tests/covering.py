"""Combinations of parameters: few by default, all of them in the slow tests."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest


def covering(*values: Sequence, together: int = 2) -> list:
    """Every combination of one value each, for pytest.mark.parametrize.

    Few of them run by default: enough that any values of `together` parameters meet in one of them. Where `together`
    is 1, every value occurs. The others are marked slow. Greedy: the next one has the most new meetings, and among
    those the values that were used least.
    """
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
