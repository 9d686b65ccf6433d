"""Trains model-l, randyGPT's network, on half a million tokens of tiny Shakespeare.

The runs of `batch 8` have the other settings of the preset, with Muon. Those of `--tokens` have the settings that this
option chooses. Each variant has three seeds.
"""

from table import MUON, measure, settings

TOKENS, BATCH, BLOCK = 499_712, 8, 256  # tokens of a run, sequences of an update, tokens of a sequence

measure(
    "half_a_million",
    {
        "batch 8": ["--batch", str(BATCH), "--iters", str(TOKENS // (BATCH * BLOCK)), *MUON],
        "--tokens": ["--tokens", str(TOKENS)],
    },
    seeds=[1, 2, 3],
    common=[
        *("--preset", "model-l", "--corpus", "shakespeare", "--eval-every", "100000"),
        *settings({"train.save_minutes": 0}),
    ],
)
