"""How far model-l goes: its preset as it stands, on the whole of tiny Shakespeare. Two hours on two cores."""

from table import measure

measure(
    "long",
    {"model-l": []},
    seeds=[1337],
    common=["--preset", "model-l", "--corpus", "shakespeare", "--set", "train.patience=0"],
)
