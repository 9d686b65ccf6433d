"""Trains llama-m on six million tokens of tiny Shakespeare, for the lowest loss without a limit of tokens.

    python experiments/learning/long_records.py FOLDER [SEED ...]

A run takes one to two hours on one core. The runs stay in FOLDER, and one that was interrupted is resumed. The rate and
its decay are those of ternary_long.py. The optimizer is the one with the lowest loss among the pilots of llama-s
in short_budgets.py. The dropout of the second row is the one with the lowest loss in tenth.py.
"""

import sys

from table import folder_argument, measure, sets, settings

SETTINGS = {
    "optimizer.name": "normuon",
    "optimizer.newton_schulz": "jordan",
    "optimizer.learning_rate": 3e-3,
    "optimizer.decay_start": 0.2,
    "optimizer.ema_decay": 0,
    "train.save_minutes": 2,
}
measure(
    "long_records",
    {
        "llama-m, 6M tokens": sets("model.dropout=0.15"),
        "llama-m, no dropout, 6M tokens": sets("model.dropout=0"),
    },
    seeds=[int(seed) for seed in sys.argv[2:]] or [1, 2, 3],
    common=[
        *("--preset", "llama-m", "--corpus", "shakespeare", "--batch", "8", "--iters", "2930", "--eval-every", "586"),
        *settings(SETTINGS),
    ],
    folder=folder_argument(),
)
