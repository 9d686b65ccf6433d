"""Trains llama-m and ternary-m on 5 million tokens of tiny Shakespeare.

    python experiments/learning/ternary_long.py FOLDER

The rate and its decay are those with the lowest loss in results/ternary_tuning.json, for float32 and for ternary
weights. A run takes about an hour on one core. The runs stay in FOLDER, and one that was interrupted is resumed.
"""

from table import OPTIMIZER, folder_argument, measure, settings

SETTINGS = {
    "model.dropout": 0.1,
    **OPTIMIZER,
    "optimizer.schedule": "wsd",
    "optimizer.learning_rate": 3e-3,
    "optimizer.decay_start": 0.2,
    "optimizer.min_learning_rate": 0,
    "optimizer.ema_decay": 0,
    "train.save_minutes": 2,
}
measure(
    "ternary_long",
    {
        "float": ["--preset", "llama-m"],
        "norms": ["--preset", "ternary-m", "--set", "model.ternary_norm=true"],
        "ternary": ["--preset", "ternary-m"],
    },
    seeds=[1],
    common=["--corpus", "shakespeare", "--batch", "8", "--iters", "2441", "--eval-every", "610", *settings(SETTINGS)],
    folder=folder_argument(),
)
