"""Estimates: pass@k against all subsets, intervals against the exact distribution."""

import itertools
import math

import pytest

from mlx_gpt.code.statistics import mean, pass_at_k, wilson


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 9):
        for c in range(n + 1):
            correct = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(correct, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


@pytest.mark.parametrize("c, k, expected", [(3, 1, 0.3), (3, 5, 0.916667), (1, 10, 1), (0, 5, 0), (10, 1, 1)])
def test_pass_at_k_has_the_known_values(c, k, expected):
    assert pass_at_k(10, c, k) == pytest.approx(expected, abs=5e-7)


def test_pass_at_k_of_many_samples_is_that_of_exact_integers():
    for n, c, k in ((1000, 3, 100), (5000, 2500, 2000), (200, 1, 199)):
        exact = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_fewer_samples_than_k(n, c, k):
    with pytest.raises(ValueError, match=f"n is {n}"):
        pass_at_k(n, c, k)


def coverage(n, p):
    """The exact probability that the interval of n samples with the share p contains p."""
    return sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c)
        for c in range(n + 1)
        if wilson(c / n, n)[0] <= p <= wilson(c / n, n)[1]
    )


@pytest.mark.parametrize("n", [1, 5, 16, 60])
def test_an_interval_contains_the_share_about_as_often_as_it_says(n):
    found = [coverage(n, i / 200) for i in range(1, 200)]
    assert 0.93 < mean(found) < 0.98
    assert min(found) > 0.79


def test_an_interval_contains_its_share_and_stays_between_0_and_1():
    for n in (1, 2, 16, 512):
        for c in range(n + 1):
            low, high = wilson(c / n, n)
            assert 0 <= low <= c / n <= high <= 1
            assert low < high
            assert wilson(1 - c / n, n) == pytest.approx((1 - high, 1 - low))
    assert wilson(0.5, 10_000) == pytest.approx((0.4902, 0.5098), abs=1e-4)


def test_the_bounds_are_the_shares_at_the_quantile():
    for n, c in ((16, 3), (100, 97)):
        for p in wilson(c / n, n):
            assert abs(c / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), rel=1e-6)


def test_the_mean_of_nothing_is_no_number():
    assert mean([]) is None
    assert mean([0.1] * 10) == 0.1
