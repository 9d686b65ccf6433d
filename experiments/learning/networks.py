"""Compares the presets of about 4.8M parameters on code: 2.5 million byte pairs of Python's standard library.

    python experiments/learning/networks.py FOLDER [PRESET ...]

A run takes between half an hour and two hours on one core. The runs stay in FOLDER, and one that was interrupted is
resumed. All of them have the settings that `--tokens` chooses.
"""

import sys

from table import chosen, folder_argument, measure, settings

PRESETS = ["model-l", "model-l-modern", "llama-m", "hybrid-m", "ternary-m", "experts-m"]
measure(
    "networks",
    {preset: ["--preset", preset] for preset in chosen(sys.argv[2:], PRESETS)},
    seeds=[1],
    common=[
        *("--corpus", "stdlib", "--bpe", "1000", "--tokens", "2.5M", "--sample-every", "0"),
        *settings({"train.save_minutes": 2}),
    ],
    folder=folder_argument(),
)
