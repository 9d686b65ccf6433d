"""Measures which settings fit the length of a run. The constants of mlx_gpt/config/budget.py are fitted to the results.

    python experiments/learning/budgets.py [fit] [repeated] [test]

The runs of `fit` change the size of updates at three lengths, and one other setting at a time at two of them. Those of
`repeated` read a small part of the text many times, with more dropout and weight decay. `test` compares the settings
that `--tokens` chooses with their neighbours, at two lengths that the fit has not seen. After the runs, the script
prints for each length of `fit` the size of an update with the lowest loss, and the critical size.
"""

import math
import statistics
import sys

from laws import fit_law, measured
from table import NORMUON, RESULTS, SHORT, chosen, measure, rows_of, settings

LENGTHS, LEFT_OUT, BLOCK = (125_000, 250_000, 500_000), (1_000_000, 2_000_000), SHORT["model.block_size"]
# Sequences of an update. The second number is the base; for the lengths of `test`, the one that `--tokens` chooses.
UPDATES = {125_000: (1, 2, 4), 250_000: (2, 4, 8), 500_000: (2, 4, 8), 1_000_000: (3, 6, 12), 2_000_000: (5, 10, 20)}
BASE = SHORT | NORMUON
HALF_RATE = {"rate x0.5": {"optimizer.learning_rate": 1.5e-3}}
CHANGES = HALF_RATE | {
    "rate x2": {"optimizer.learning_rate": 6e-3},
    "decay from 0.4": {"optimizer.decay_start": 0.4},
}
TEST_CHANGES = CHANGES | {
    "rate x0.7": {"optimizer.learning_rate": 2.1e-3},
    "dropout 0.1": {"model.dropout": 0.1},
}
COMMON = ["--preset", "llama-s", "--corpus", "shakespeare", "--sample-every", "0"]


def arguments(tokens: int, sequences: int, changes: dict) -> list[str]:
    """Returns the arguments for a run of this many tokens, with changes of BASE."""
    return ["--tokens", str(tokens), "--batch", str(sequences), *settings(BASE | changes)]


def variants(tokens: int, changes: dict[str, dict]) -> dict[str, list[str]]:
    """Returns the arguments of runs with other updates, and of runs with changes and updates of the second size."""
    sizes = {named(tokens, k): arguments(tokens, k, {}) for k in UPDATES[tokens]}
    base = UPDATES[tokens][1]
    return sizes | {f"{named(tokens, base)}, {name}": arguments(tokens, base, each) for name, each in changes.items()}


def fit_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `fit`."""
    shortest, middle, longest = LENGTHS
    return variants(shortest, CHANGES) | variants(middle, {}) | variants(longest, CHANGES)


def named(tokens: int, sequences: int) -> str:
    """Names a run with the settings of BASE."""
    return f"{tokens:,} tokens, {sequences} sequences"


def repeated_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `repeated`: 500,000 tokens of a tenth of the text."""
    base = {"model.dropout": 0.1, "data.val_fraction": 0.9, "train.eval_windows": 400}
    changes = {f"dropout {rate:g}": {"model.dropout": rate} for rate in (0, 0.1, 0.2)}
    changes |= {f"weight decay {decay:g}": {"optimizer.weight_decay": decay} for decay in (0.03, 0.3, 1)}
    return {f"a tenth of the text, {name}": arguments(500_000, 4, base | change) for name, change in changes.items()}


def best_update(tokens: int, rows: list[dict]) -> float:
    """Returns the tokens of an update with the lowest loss: that of a parabola in the logarithm of the size."""
    low, middle, high = losses(tokens, rows)
    bend = low - 2 * middle + high
    shift = 0.5 * (low - high) / bend if bend > 0 else 0
    return UPDATES[tokens][1] * BLOCK * 2 ** min(max(shift, -1), 1)


def critical_update(tokens: int, rows: list[dict]) -> float:
    """Returns the tokens C of an update of critical size, by the losses with the second and with the largest updates.

    A run with updates of B tokens learns as much as one of a number of tokens in proportion to 1 / (B + C). The law of
    llama-s converts the losses to these numbers.
    """
    law, (_, *values) = fit_law(measured("llama-s"))[0], losses(tokens, rows)
    middle, large = (k * BLOCK for k in UPDATES[tokens][1:])
    of_middle, of_large = ((loss - law.limit) ** (-1 / law.power) for loss in values)
    ratio = of_large / of_middle
    return (ratio * large - middle) / (1 - ratio) if ratio < 1 else math.inf


def losses(tokens: int, rows: list[dict]) -> list[float]:
    """Returns the mean losses of the updates of a length, from the smallest to the largest update."""
    return [
        statistics.mean(row["val_loss"] for row in rows if row["name"] == named(tokens, k)) for k in UPDATES[tokens]
    ]


# Name of a group -> arguments of its runs, and their seeds.
GROUPS = {
    "fit": [(fit_variants(), [11, 12])],
    "repeated": [(repeated_variants(), [11, 12])],
    "test": [(variants(LEFT_OUT[0], TEST_CHANGES), [21, 22]), (variants(LEFT_OUT[1], HALF_RATE), [31, 32])],
}
for group in chosen(sys.argv[1:], GROUPS):
    for runs, seeds in GROUPS[group]:
        measure(f"budgets_{group}", runs, seeds, COMMON)
rows = rows_of(RESULTS / "budgets_fit.json")
if all(any(row["name"] == name for row in rows) for name in fit_variants()):
    sizes = {tokens: best_update(tokens, rows) for tokens in LENGTHS}
    power, start = statistics.linear_regression(*([math.log(n) for n in values] for values in (sizes, sizes.values())))
    print({tokens: round(size) for tokens, size in sizes.items()})
    lines = {tokens: math.exp(start + power * math.log(tokens)) for tokens in LENGTHS}
    print(f"tokens of an update: {lines[500_000]:.0f} x (tokens / 500,000)^{power:.2f}")
    multiples = [critical_update(tokens, rows) / size for tokens, size in lines.items()]
    print(f"its critical size is {statistics.median(multiples):.1f} times that, the median of {multiples}")
