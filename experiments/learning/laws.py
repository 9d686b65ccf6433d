"""Measures how the loss of a preset depends on the length of the run, and fits the laws of mlx_gpt/config/law.py.

    python experiments/learning/laws.py [PRESET ...]

Each run has the settings that `--tokens` chooses. A run takes between one and twenty minutes on one core. After the
runs, the script prints for each length the loss that a curve through the other lengths predicts, and the law.
"""

import math
import statistics
import sys

import numpy as np
from table import RESULTS, chosen, measure, rows_of, settings

from mlx_gpt.config.law import MILLION, Law
from mlx_gpt.config.presets import names_of

PRESETS = ["model-s", "llama-s"]
LENGTHS = [125_000, 250_000, 500_000, 1_000_000, 2_000_000]
SEEDS = [1, 2]
POWERS = np.arange(0.05, 1.5, 0.01)


def named(preset: str, tokens: int) -> str:
    return f"{preset}, {tokens:,} tokens"


def measured(preset: str) -> dict[int, list[float]]:
    """Returns the losses of the runs of each length that was measured with all seeds, in the order of the seeds."""
    rows = sorted(rows_of(RESULTS / "laws.json"), key=lambda row: row["seed"])
    losses = {n: [row["val_loss"] for row in rows if row["name"] == named(preset, n)] for n in LENGTHS}
    return {n: each for n, each in losses.items() if len(each) == len(SEEDS)}


def curve(losses: dict[int, list[float]]) -> tuple[float, float, float]:
    """Returns limit, scale and power of the curve with the least squared error through the mean losses."""
    lengths = np.array(list(losses)) / MILLION
    values = np.array([statistics.mean(each) for each in losses.values()])

    def fit(power: float) -> tuple[float, tuple[float, float, float]]:
        columns = np.stack([np.ones_like(lengths), lengths**-power], axis=1)
        limit, scale = np.linalg.lstsq(columns, values)[0]
        return float(np.square(columns @ [limit, scale] - values).sum()), (float(limit), float(scale), float(power))

    return min(map(fit, POWERS))[1]


def fit_law(losses: dict[int, list[float]]) -> tuple[Law, dict[int, float]]:
    """Returns the law of a preset, and for each length the prediction of a curve through the others."""
    ends = {"shortest": min(losses), "longest": max(losses)}
    left_out = {}
    for tokens in losses:
        others = Law(*curve({n: each for n, each in losses.items() if n != tokens}), error=0, **ends)
        left_out[tokens] = others.loss(tokens)
    error = max(abs(left_out[n] - loss) for n, each in losses.items() for loss in each)
    limit, scale, power = (round(value, 4) for value in curve(losses))
    return Law(limit, scale, power, error=math.ceil(100 * error) / 100, **ends), left_out


if __name__ == "__main__":
    for preset in chosen(sys.argv[1:] or PRESETS, names_of("presets")):
        measure(
            "laws",
            {named(preset, tokens): ["--tokens", str(tokens)] for tokens in LENGTHS},
            SEEDS,
            common=[
                *("--preset", preset, "--corpus", "shakespeare"),
                *settings({"train.eval_every": 100_000, "train.sample_every": 0, "train.save_minutes": 0}),
            ],
        )
        if len(losses := measured(preset)) > 3:
            found, left_out = fit_law(losses)
            for tokens, each in losses.items():
                print(f"{tokens:>9,} tokens: measured {each}, predicted without them {left_out[tokens]:.4f}")
            print(f'    "{preset}": {found},')
