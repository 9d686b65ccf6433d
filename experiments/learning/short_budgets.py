"""Compares networks and settings at half a million tokens of tiny Shakespeare, one factor at a time.

    python experiments/learning/short_budgets.py pilots

The pilots have one seed, which is not used for results.
"""

import sys

from table import HYBRID, NORMUON, OPTIMIZER, SHORT, measure, settings

TOKENS = 499_712
BASE = OPTIMIZER | SHORT | {"train.batch_size": 8}
EXPERTS = {"model.ffn": "moe", "model.n_expert": 8, "model.n_expert_per_token": 2, "model.ffn_dim": 192}
SMALL = {"train.batch_size": 4}
PILOTS = {
    "llama-s, 8 x 128": {},
    "4 x 128": SMALL,
    "hybrid": HYBRID,
    "experts": EXPERTS,
    "4 x 128, NorMuon": SMALL | {"optimizer.name": "normuon"},
    "4 x 128, NorMuon, polar": SMALL | NORMUON,
    "hybrid, 4 x 128, NorMuon, polar": HYBRID | SMALL | NORMUON,
}


def arguments(changed: dict) -> list[str]:
    """Returns the arguments of `mlxgpt train` for TOKENS tokens with changed settings."""
    values = BASE | changed
    values["train.iters"] = TOKENS // (values["train.batch_size"] * values["model.block_size"])
    return settings(values)


if sys.argv[1:] != ["pilots"]:
    raise SystemExit(__doc__)
measure(
    "short_budgets_pilots",
    {name: arguments(changed) for name, changed in PILOTS.items()},
    seeds=[0],
    common=["--preset", "llama-s", "--corpus", "shakespeare"],
)
