"""Plots the validation perplexity of runs against the number of tokens trained on.

    python experiments/curves.py experiments/results/curves.png LABEL=METRICS.jsonl ...

The points that randyGPT's authors published are drawn for comparison.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from mlx_gpt.watch.metrics import read_metrics

# (iteration, validation perplexity) that randyGPT's authors published for model-l on tiny Shakespeare. An iteration has
# 64 sequences of 256 tokens.
PUBLISHED = [(200, 13.4), (300, 12.0), (400, 11.2), (500, 11.8), (929, 10.6)]
TOKENS_PER_ITERATION = 64 * 256


def main(picture: str, labeled: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for label, _, path in (text.partition("=") for text in labeled):
        lines = [line for line in read_metrics(Path(path)) if line.get("val_ppl") and line["tokens"]]
        axes.plot([line["tokens"] / 1e6 for line in lines], [line["val_ppl"] for line in lines], ".-", label=label)
    tokens, ppl = zip(*((i * TOKENS_PER_ITERATION / 1e6, ppl) for i, ppl in PUBLISHED), strict=True)
    axes.plot(tokens, ppl, "kx", label="randyGPT, published")
    axes.axhline(10.6, color="grey", lw=0.8, ls="--", label="randyGPT's best, 10.6")
    axes.set(xscale="log", yscale="log", xlabel="million tokens trained on", ylabel="validation perplexity")
    axes.set_title("model-l on tiny Shakespeare")
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], [0.2, 0.5, 1, 2, 5, 10, 20])
    axes.set_yticks([4, 5, 6, 8, 10, 15, 20, 30, 50, 70], [4, 5, 6, 8, 10, 15, 20, 30, 50, 70])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
