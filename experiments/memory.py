"""Checks for memory leaks: plots MLX's active memory and the resident size over a training run.

    python experiments/memory.py PICTURE.png [STEPS]

The run has 2,000 updates by default, with evaluations and saves. The growth over its second half is that of a fitted
line, relative to the mean. The exit code is 1 if either size grows by more than 1%.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.run.build import make_trainer
from mlx_gpt.run.request import Request
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import SaveReport, StepReport

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


def resident() -> int:
    """Returns the resident size of this process in bytes. Without /proc, as on macOS, returns the peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(picture: str, steps: int = 2000) -> None:
    overrides = {
        "train.batch_size": 4,
        "train.iters": steps,
        "train.eval_every": 100,
        "train.eval_windows": 64,
        "train.save_minutes": 0.1,
        "train.patience": 0,
    }
    request = Request(preset="model-xs", settings=overrides)
    rows, saves = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for report in make_trainer(begin(request, print), Path(folder), print).run():
            saves += isinstance(report, SaveReport)
            if isinstance(report, StepReport):
                rows.append((report.step, mx.get_active_memory() / 1e6, resident() / 1e6))
    step, *curves = np.array(rows).T
    figure, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True)
    grew = False
    for axis, curve, name in zip(axes, curves, ("MLX active memory", "resident size"), strict=True):
        half = len(step) // 2
        slope, level = np.polyfit(step[half:], curve[half:], 1)
        growth = slope * (step[-1] - step[half]) / curve[half:].mean()
        grew |= growth > 0.01
        print(f"{name}: {curve[half:].mean():.1f} MB, {growth:+.2%} over the last {len(step) - half} updates")
        axis.plot(step, curve, linewidth=0.8)
        axis.set_ylabel("MB")
        axis.set_title(f"{name}: {growth:+.2%} over the second half", loc="left", fontsize=9)
        axis.set_ylim(0, 1.2 * curve.max())
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel(f"updates of model-xs ({steps // 100} evaluations, {saves} saves)")
    figure.tight_layout()
    figure.savefig(picture, dpi=150)
    sys.exit(int(grew))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
