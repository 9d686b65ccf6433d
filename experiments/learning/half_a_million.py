"""Trains model-l on half a million tokens of tiny Shakespeare, with two batch sizes and with less dropout.

Each variant has three seeds.
"""

from table import measure

TOKENS, BLOCK = 499_712, 256  # tokens of a run, 244 steps of 8 sequences; tokens of a sequence


def steps_of(batch: int, *more: str) -> list[str]:
    """Returns arguments of `mlxgpt train` for TOKENS tokens in batches of `batch` sequences."""
    return ["--batch", str(batch), "--iters", str(TOKENS // (batch * BLOCK)), *more]


measure(
    "half_a_million",
    {
        "batch 8": steps_of(8),
        "batch 16": steps_of(16),
        "batch 8, dropout 0.1": steps_of(8, "--set", "model.dropout=0.1"),
    },
    seeds=[1, 2, 3],
    common=[
        "--preset",
        "model-l",
        "--corpus",
        "shakespeare",
        "--eval-every",
        "100000",
        "--set",
        "train.save_minutes=0",
    ],
)
