"""Measures which settings fit the length of a run. The constants of mlx_gpt/config/budget.py are fitted to the results.

    python experiments/learning/budgets.py [fit] [repeated] [test]

The runs of `fit` change the size of updates at three lengths, and one other setting at a time at two of them. Those of
`repeated` read a small part of the text many times, with more dropout and weight decay. `test` compares the settings
that `--tokens` chooses with others, at a length that the fit has not seen. After the runs, the script prints the size
of an update and the learning rate with the lowest loss for each length of `fit`.
"""

import math
import statistics
import sys

from table import NORMUON, RESULTS, measure, rows_of, settings

LENGTHS, LEFT_OUT, BLOCK = (125_000, 250_000, 500_000), 1_000_000, 128
UPDATES = {125_000: (1, 2, 4), 250_000: (2, 4, 8), 500_000: (2, 4, 8)}  # sequences of an update; the second is the base
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


def fit_variants() -> dict[str, list[str]]:
    """Returns the arguments of each run of `fit`: other updates, and changes with updates of the second size."""
    sizes = {named(n, k): arguments(n, k, {}) for n in LENGTHS for k in UPDATES[n]}
    changed = {
        f"{named(n, UPDATES[n][1])}, {name}": arguments(n, UPDATES[n][1], change)
        for n in (LENGTHS[0], LENGTHS[-1])
        for name, change in CHANGES.items()
    }
    return sizes | changed


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
    """Returns the arguments of each run of `test`. All but the chosen settings have one of three learning rates."""
    chosen = ["--tokens", str(LEFT_OUT), "--eval-every", "100000"]
    at = {rate: [*chosen, *settings({"optimizer.learning_rate": rate})] for rate in (RATE / 2, RATE, RATE * 2)}
    changes = {f"{k} sequences": ["--batch", str(k)] for k in (3, 12)}
    changes |= {"decay from 0.4": settings(CHANGES["decay from 0.4"]), "dropout 0.1": settings({"model.dropout": 0.1})}
    return {
        "chosen": chosen,
        **{f"rate {rate:g}": arguments for rate, arguments in at.items()},
        **{f"rate {RATE:g}, {name}": [*at[RATE], *change] for name, change in changes.items()},
    }


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


GROUPS = {"fit": (fit_variants, [11, 12]), "repeated": (repeated_variants, [11, 12]), "test": (test_variants, [21, 22])}
for group in sys.argv[1:] or GROUPS:
    variants, seeds = GROUPS[group]
    measure(f"budgets_{group}", variants(), seeds, COMMON)
rows = rows_of(RESULTS / "budgets_fit.json")
if all(any(row["name"] == name for row in rows) for name in fit_variants()):
    sizes = {n: [named(n, k) for k in UPDATES[n]] for n in LENGTHS}
    print_line(
        "tokens of an update", {n: UPDATES[n][1] * BLOCK * 2 ** lowest(rows, names) for n, names in sizes.items()}
    )
    bases = {n: named(n, UPDATES[n][1]) for n in (LENGTHS[0], LENGTHS[-1])}
    rates = {n: [f"{base}, rate x0.5", base, f"{base}, rate x2"] for n, base in bases.items()}
    print_line("learning rate", {n: RATE * 2 ** lowest(rows, each) for n, each in rates.items()})
