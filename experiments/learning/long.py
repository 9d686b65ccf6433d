"""Trains model-l on tiny Shakespeare with the settings of its preset. Takes 2.6 hours on two shared CPU cores."""

from table import MUON, measure

measure(
    "long",
    {"model-l": []},
    seeds=[1337],
    common=["--preset", "model-l", "--corpus", "shakespeare", "--set", "train.patience=0", *MUON],
)
