"""Trains model-l on tiny Shakespeare with the settings of its preset. Takes two hours on two cores."""

from table import measure

measure(
    "long",
    {"model-l": []},
    seeds=[1337],
    common=["--preset", "model-l", "--corpus", "shakespeare", "--set", "train.patience=0"],
)
