"""Measures which settings fit the length of a run. The constants of mlx_gpt/config/budget.py are fitted to the results.

    python experiments/learning/budgets.py [fit] [million] [repeated] [test]

The runs of `fit` change the size of updates at three lengths, and one other setting at a time at two of them, and those
of `million` at a million tokens. Those of `repeated` read a small part of the text many times, with more dropout and
weight decay. `test` compares the settings that `--tokens` chooses with a rate of RATE, at a length that the fit has not
seen. After the runs, the script prints the size of an update with the lowest loss for each length of `fit`, and the
learning rate with the lowest loss for these lengths and for a million tokens.
"""

import math
import statistics
import sys

from table import NORMUON, RESULTS, measure, rows_of, settings

LENGTHS, MILLION, LEFT_OUT, BLOCK = (125_000, 250_000, 500_000), 1_000_000, 2_000_000, 128
# Sequences of an update. The second number is the base.
UPDATES = {125_000: (1, 2, 4), 250_000: (2, 4, 8), 500_000: (2, 4, 8), MILLION: (3, 6, 12)}
RATE = 3e-3
BASE = {"optimizer.decay_start": 0.1, "model.dropout": 0, "train.eval_every": 100_000} | NORMUON
BASE |= {"optimizer.learning_rate": RATE}
CHANGES = {
    "rate x0.5": {"optimizer.learning_rate": RATE / 2},
    "rate x2": {"optimizer.learning_rate": RATE * 2},
    "decay from 0.4": {"optimizer.decay_start": 0.4},
}
COMMON = [*("--preset", "llama-s", "--corpus", "shakespeare"), *settings({"train.save_minutes": 0})]
COMMON += settings({"optimizer.ema_decay": 0, "model.block_size": BLOCK, "train.sample_every": 0})


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


def million_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `million`."""
    more = {"rate x0.7": {"optimizer.learning_rate": 0.7 * RATE}, "dropout 0.1": {"model.dropout": 0.1}}
    return variants(MILLION, CHANGES | more)


def named(tokens: int, sequences: int) -> str:
    """Names a run with the settings of BASE."""
    return f"{tokens:,} tokens, {sequences} sequences"


def repeated_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `repeated`: 500,000 tokens of a tenth of the text."""
    base = {"model.dropout": 0.1, "data.val_fraction": 0.9, "train.eval_windows": 400}
    changes = {f"dropout {rate:g}": {"model.dropout": rate} for rate in (0, 0.1, 0.2)}
    changes |= {f"weight decay {decay:g}": {"optimizer.weight_decay": decay} for decay in (0.03, 0.3, 1)}
    return {f"a tenth of the text, {name}": arguments(500_000, 4, base | change) for name, change in changes.items()}


def test_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `test`."""
    chosen = ["--tokens", str(LEFT_OUT), "--eval-every", "100000"]
    return {"chosen": chosen, f"rate {RATE:g}": [*chosen, *settings({"optimizer.learning_rate": RATE})]}


def lowest(rows: list[dict], names: list[str]) -> float:
    """Returns where a parabola through the mean losses of three runs, at -1, 0 and 1, has its minimum in this range."""
    low, middle, high = (statistics.mean(row["val_loss"] for row in rows if row["name"] == name) for name in names)
    bend = low - 2 * middle + high
    shift = 0.5 * (low - high) / bend if bend > 0 else 0
    return min(max(shift, -1), 1)


def print_line(what: str, values: dict[int, float]) -> None:
    """Prints the best values of a setting by the tokens of the run, and a line through their logarithms."""
    power, start = statistics.linear_regression(*([math.log(n) for n in each] for each in (values, values.values())))
    print({tokens: float(f"{value:.3g}") for tokens, value in values.items()})
    print(f"{what}: {math.exp(start + power * math.log(500_000)):.3g} x (tokens / 500,000)^{power:.2f}")


# Name of a group -> a function that returns the arguments of its runs, and their seeds.
GROUPS = {
    "fit": (fit_variants, [11, 12]),
    "million": (million_variants, [21, 22]),
    "repeated": (repeated_variants, [11, 12]),
    "test": (test_variants, [31, 32]),
}
for group in sys.argv[1:] or GROUPS:
    runs, seeds = GROUPS[group]
    measure(f"budgets_{group}", runs(), seeds, COMMON)
rows = [row for group in ("fit", "million") for row in rows_of(RESULTS / f"budgets_{group}.json")]
if {row["name"] for row in rows} >= fit_variants().keys() | million_variants().keys():
    sizes = {n: [named(n, k) for k in UPDATES[n]] for n in LENGTHS}
    print_line("tokens of an update", {n: UPDATES[n][1] * BLOCK * 2 ** lowest(rows, each) for n, each in sizes.items()})
    bases = {n: named(n, UPDATES[n][1]) for n in (LENGTHS[0], LENGTHS[-1], MILLION)}
    rates = {n: [f"{base}, rate x0.5", base, f"{base}, rate x2"] for n, base in bases.items()}
    print_line("learning rate", {n: RATE * 2 ** lowest(rows, each) for n, each in rates.items()})
