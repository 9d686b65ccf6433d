"""Trains the networks that reached the lowest losses at short budgets of tiny Shakespeare, each with three seeds.

    python experiments/learning/records.py [500000] [1000000]

The settings were chosen with short_budgets.py, on another seed, and half the learning rate with `budgets.py test`, on
two others.
"""

import sys

from table import HYBRID, MUON, NORMUON, SHORT, chosen, measure, settings

BATCH, BLOCK = 4, SHORT["model.block_size"]  # sequences of an update, tokens of a sequence
SLOW = {"optimizer.learning_rate": 0.0015}  # half the rate of llama-s
# Length: {name: changes} that were measured at this length only
MORE = {500_000: {"llama-s": MUON}, 1_000_000: {"hybrid, half the rate": settings(NORMUON | HYBRID | SLOW)}}


def variants(tokens: int) -> dict[str, list[str]]:
    """Returns the arguments of the runs of a length."""
    length = ["--iters", str(tokens // (BATCH * BLOCK))]
    networks = {"llama-s, NorMuon": settings(NORMUON), "hybrid, NorMuon": settings(NORMUON | HYBRID)}
    return {f"{name}, {tokens:,} tokens": [*length, *changes] for name, changes in (networks | MORE[tokens]).items()}


measure(
    "records",
    {name: run for tokens in map(int, chosen(sys.argv[1:], map(str, MORE))) for name, run in variants(tokens).items()},
    seeds=[1, 2, 3],
    common=[
        *("--preset", "llama-s", "--corpus", "shakespeare"),
        *settings(SHORT | {"train.batch_size": BATCH}),
    ],
)
