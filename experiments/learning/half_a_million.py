"""Trains model-l on half a million tokens of Shakespeare, with several batch sizes and three seeds each."""

from table import measure

TOKENS, BLOCK = 499_712, 256


def steps_of(batch: int, *more: str) -> list[str]:
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
