"""Draws validation loss against tokens for runs, beside the published points of randyGPT.

python bench/curves.py curves.png runs/model-l-shakespeare runs/randygpt
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from mlx_gpt.watch.metrics import read_metrics  # noqa: E402

# (iterations, perplexity) published for model-l on tiny Shakespeare, 64 x 256 tokens an iteration.
PUBLISHED = [(200, 13.4), (300, 12.0), (400, 11.2), (500, 11.8), (929, 10.6)]
TOKENS_PER_ITERATION = 64 * 256


def main(picture: str, folders: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    for folder in folders:
        lines = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if line.get("val_ppl")]
        axes.plot(
            [line["tokens"] / 1e6 for line in lines], [line["val_ppl"] for line in lines], ".-", label=Path(folder).name
        )
    axes.plot(
        *zip(*[(i * TOKENS_PER_ITERATION / 1e6, ppl) for i, ppl in PUBLISHED], strict=True),
        "kx",
        label="randyGPT, published",
    )
    axes.axhline(10.6, color="grey", lw=0.8, ls="--", label="randyGPT's best, 10.6")
    axes.set(
        xlabel="million tokens trained on",
        ylabel="validation perplexity",
        xscale="log",
        yscale="log",
        title="model-l on tiny Shakespeare",
    )
    ticks = [6, 8, 10, 15, 20, 30, 50, 70]
    axes.set_yticks(ticks, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
