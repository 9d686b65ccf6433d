"""Checks for memory leaks: plots MLX's active memory and the resident size over a training run.

    python experiments/memory.py PICTURE.png [STEPS]

The run has 2,000 updates of model-xs by default, with evaluations and saves. The growth over its second half is that of
a fitted line, relative to the mean. The exit code is 1 if either size grows by more than 1%.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from mlx_gpt.device.mlx import mx
from mlx_gpt.run.build import make_trainer
from mlx_gpt.run.request import Request
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import SaveReport, StepReport

EVAL_EVERY = 100


def resident() -> int:
    """Returns the resident size of this process in bytes. Without /proc, as on macOS, returns the peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def note(line: str) -> None:
    print(line, file=sys.stderr)


def sizes(steps: int) -> tuple[np.ndarray, int]:
    """Trains model-xs. Returns rows of (step, active MB, resident MB), (steps, 3), and the number of saves."""
    overrides = {
        "train.batch_size": 4,
        "train.iters": steps,
        "train.eval_every": EVAL_EVERY,
        "train.eval_windows": 64,
        "train.save_minutes": 0.1,
        "train.patience": 0,
    }
    request = Request(preset="model-xs", settings=overrides)
    rows, saves = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for report in make_trainer(begin(request, note), Path(folder), note).run():
            saves += isinstance(report, SaveReport)
            if isinstance(report, StepReport):
                rows.append((report.step, mx.get_active_memory() / 1e6, resident() / 1e6))
    return np.array(rows), saves


def growth(step: np.ndarray, curve: np.ndarray) -> float:
    """Returns the growth of a curve over its second half: that of a fitted line, relative to the mean."""
    half = len(step) // 2
    slope, _ = np.polyfit(step[half:], curve[half:], 1)
    return slope * (step[-1] - step[half]) / curve[half:].mean()


def main(picture: str, steps: int = 2000) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows, saves = sizes(steps)
    step, *curves = rows.T
    figure, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True)
    grew = False
    for axis, curve, name in zip(axes, curves, ("MLX active memory", "resident size"), strict=True):
        half, grown = len(step) // 2, growth(step, curve)
        grew |= grown > 0.01
        print(f"{name}: {curve[half:].mean():.1f} MB, {grown:+.2%} over the last {len(step) - half} updates")
        axis.plot(step, curve, linewidth=0.8)
        axis.set_ylabel("MB")
        axis.set_title(f"{name}: {grown:+.2%} over the second half", loc="left", fontsize=9)
        axis.set_ylim(0, 1.2 * curve.max())
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel(f"updates of model-xs ({steps // EVAL_EVERY} evaluations, {saves} saves)")
    figure.tight_layout()
    figure.savefig(picture, dpi=150)
    sys.exit(int(grew))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
