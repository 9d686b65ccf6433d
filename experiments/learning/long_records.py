"""Trains llama-m on six million tokens of tiny Shakespeare, for the lowest loss without a limit of tokens.

    python experiments/learning/long_records.py FOLDER [SEED ...]

A run took two hours on one core. The runs stay in FOLDER, and one that was interrupted is resumed. The rate and its
decay are those of ternary_long.py. The dropout is higher than there, because the text is read more often. The optimizer
is the one with the lowest loss among the pilots of short_budgets.py. With a longer context, fewer characters of the
validation split are predicted from little text.
"""

import sys

from table import folder_argument, measure, sets, settings

SETTINGS = {
    "model.dropout": 0.15,
    "optimizer.name": "normuon",
    "optimizer.learning_rate": 3e-3,
    "optimizer.decay_start": 0.2,
    "optimizer.ema_decay": 0,
    "train.save_minutes": 2,
}
measure(
    "long_records",
    {
        "llama-m, 6M tokens": ["--batch", "8", *sets("optimizer.newton_schulz=jordan")],
        "llama-m, context 512, 6M tokens": [
            *("--batch", "4"),
            *sets("optimizer.newton_schulz=polar", "model.block_size=512"),
        ],
    },
    seeds=[int(seed) for seed in sys.argv[2:]] or [1, 2, 3],
    common=[
        *("--preset", "llama-m", "--corpus", "shakespeare", "--iters", "2930", "--eval-every", "586"),
        *settings(SETTINGS),
    ],
    folder=folder_argument(),
)
