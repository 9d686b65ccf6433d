"""Draws how reward, KL and distinct texts went during the runs of code.py.

    python experiments/learning/code_curves.py PICTURE.png [FOLDER]

With FOLDER, the folder of the models of code.py, the curves are read from its runs and written to
results/code_curves.json. Lines are means over the seeds, and bands go from the lowest to the highest seed. The runs of
rft are not drawn: with this reward, they equal those of maxrl. Needs matplotlib.
"""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

from mlx_gpt.watch.metrics import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CURVES = Path(__file__).parent / "results" / "code_curves.json"
OBJECTIVES = {"grpo": "#0072b2", "dr-grpo": "#d55e00", "gspo": "#009e73", "maxrl": "#000000"}
CHARTS = {"reward": "mean reward", "distinct": "distinct texts, share", "kl": "KL to the first model, nats per token"}
SEEDS = (1, 2, 3)


def read(folder: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Returns {objective: {name of a value: a list for each seed, with the value of each update}}."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for objective in OBJECTIVES:
        runs = [read_metrics(folder / f"{objective}-{seed}" / "metrics.jsonl") for seed in SEEDS]
        updates = [[line for line in run if line["report"] == "step"] for run in runs]
        found[objective] = {name: [[round(line[name], 5) for line in run] for run in updates] for name in CHARTS}
    return found


def draw(curves: dict[str, dict[str, list[list[float]]]], picture: str) -> None:
    figure, axes = plt.subplots(1, len(CHARTS), figsize=(10, 3.4), dpi=110)
    for axis, (name, title) in zip(axes, CHARTS.items(), strict=True):
        for objective, values in curves.items():
            seeds = np.array(values[name])
            update = np.arange(1, seeds.shape[1] + 1)
            axis.plot(update, seeds.mean(0), color=OBJECTIVES[objective], label=objective)
            axis.fill_between(update, seeds.min(0), seeds.max(0), color=OBJECTIVES[objective], alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="update")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


def main(picture: str, folder: str | None = None) -> None:
    if folder:
        CURVES.write_text(json.dumps(read(Path(folder))).replace('"kl"', '\n"kl"').replace("}, ", "},\n") + "\n")
    draw(json.loads(CURVES.read_text()), picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
