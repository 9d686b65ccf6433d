"""Estimates from samples: intervals of shares, and pass@k."""

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(mean: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Returns Wilson's score interval of a share.

    It has the shares p with |mean - p| <= z sqrt(p (1 - p) / count). A mean of independent numbers from 0 to 1 varies
    at most as much as a share of the same mean, so the interval also holds for such a mean.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        mean: The share, from 0 to 1.
        count: The number of samples, at least 1.
        z: The quantile of the standard normal distribution. The default gives 95 %.

    Returns:
        The lower and the upper bound, from 0 to 1.
    """
    center = mean + z * z / (2 * count)
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Rounding can move a bound of a share of 0 or 1 past the share.
    return min(max((center - half) / scale, 0.0), mean), max(min((center + half) / scale, 1.0), mean)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of the probability that at least one of k samples is correct.

    It is 1 - C(n - c, k) / C(n, k), the share of the subsets of k samples that have a correct one. The ratio is a
    product of k factors, so no binomial coefficient is computed.

    Source: Chen et al., "Evaluating large language models trained on code", arXiv:2107.03374.

    Args:
        n: Number of samples.
        c: Number of correct samples, 0 to n.
        k: 1 to n.

    Raises:
        ValueError: k is not from 1 to n, or c not from 0 to n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n; n is {n}, c is {c}, k is {k}")
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean, or None if there are no values."""
    return math.fsum(values) / len(values) if values else None
