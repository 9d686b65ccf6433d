"""Draws the pictures of docs/learning.md from the results.

    python experiments/learning/pictures.py [PICTURE ...]

The pictures are the keys of PICTURES. They need the extra `plot`.
"""

import statistics
import sys
from pathlib import Path

import numpy as np
from laws import MILLION, SEEDS, fit_law, measured
from table import RESULTS, chosen, rows_of

try:
    import matplotlib
except ImportError:
    raise SystemExit("the pictures need matplotlib; install it with: pip install -e '.[plot]'") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

IMAGES = Path(__file__).parents[2] / "docs/images"
PRESET = "llama-s"


def draw_law(axes: plt.Axes) -> None:
    """Draws the losses of llama-s, their law, and the predictions without the runs of a length."""
    losses = measured(PRESET)
    found, left_out = fit_law(losses)
    axes.set_xscale("log")
    tokens = np.geomspace(found.shortest, found.longest, 100)
    axes.plot(tokens / MILLION, [found.loss(n) for n in tokens], color="tab:blue", label="law")
    lengths = [n / MILLION for n in losses]
    axes.plot(lengths, left_out.values(), "x", color="tab:orange", label="predicted by the other lengths")
    axes.plot(
        lengths, losses.values(), ".", color="black", label=["measured, one point a run", *[None] * (len(SEEDS) - 1)]
    )
    axes.set_xticks(lengths, [f"{n:.3g}" for n in lengths])
    axes.set(xlabel="million tokens of the run", ylabel="validation loss, nats per character")
    axes.set_title(f"{PRESET} on tiny Shakespeare")


def draw_pairs(axes: plt.Axes) -> None:
    """Draws the bits per byte of each vocabulary, after as many bytes of text."""
    rows = rows_of(RESULTS / "pairs_small.json")
    axes.plot([row["name"] for row in rows], [row["bits_per_byte"] for row in rows], "o", label="one run")
    axes.set(xlabel="vocabulary", ylabel="validation loss, bits per byte")
    axes.set_title(f"{PRESET} on gutenberg-shakespeare, after 1.5 million bytes")


def draw_factors(axes: plt.Axes) -> None:
    """Draws how much each change adds to the loss of the run without a change and with the same seed."""
    rows = [row for row in rows_of(RESULTS / "factors.json") if row["seed"]]  # seed 0 chose the rates
    base = {row["seed"]: row["val_loss"] for row in rows if row["name"] == "normuon"}
    added: dict[str, list[float]] = {}
    for row in rows:
        added.setdefault(row["name"], []).append(row["val_loss"] - base[row["seed"]])
    names = sorted(added.keys() - {"normuon"}, key=lambda name: -statistics.mean(added[name]))
    axes.figure.set_size_inches(8, 8)
    points = [(change, name) for name in names for change in added[name]]
    axes.plot(*zip(*points, strict=True), "o", alpha=0.7, label="one run")
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="validation loss minus that of the base with the same seed, nats per character")
    axes.set_title(f"{PRESET}, half a million tokens of tiny Shakespeare")


PICTURES = {"law": (draw_law, "laws"), "pairs": (draw_pairs, "pairs_small"), "factors": (draw_factors, "factors")}
for name in chosen(sys.argv[1:], PICTURES):
    draw, table = PICTURES[name]
    if not rows_of(RESULTS / f"{table}.json"):
        raise SystemExit(f"{table}.json has no rows yet; run the script that measures them")
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    draw(axes)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / f"{name}.png")
