"""Trains the networks that reached the lowest losses at short budgets of tiny Shakespeare, each with three seeds.

    python experiments/learning/records.py [TOKENS ...]

The settings were chosen with short_budgets.py, on another seed.
"""

import sys

from table import HYBRID, MUON, NORMUON, SHORT, measure, settings

BUDGETS = [500_000, 1_000_000]
BATCH, BLOCK = 4, SHORT["model.block_size"]  # sequences of an update, tokens of a sequence


def variants(tokens: int) -> dict[str, list[str]]:
    """Returns the arguments of the runs of a length. Muon was measured at the shortest length only."""
    length = ["--iters", str(tokens // (BATCH * BLOCK))]
    muon = {"llama-s": MUON} if tokens == BUDGETS[0] else {}
    networks = muon | {"llama-s, NorMuon": settings(NORMUON), "hybrid, NorMuon": settings(NORMUON | HYBRID)}
    return {f"{name}, {tokens:,} tokens": [*length, *changes] for name, changes in networks.items()}


measure(
    "records",
    {name: run for tokens in map(int, sys.argv[1:] or BUDGETS) for name, run in variants(tokens).items()},
    seeds=[1, 2, 3],
    common=[
        *("--preset", "llama-s", "--corpus", "shakespeare"),
        *settings(SHORT | {"train.batch_size": BATCH}),
    ],
)
