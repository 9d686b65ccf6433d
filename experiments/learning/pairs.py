"""Compares vocabularies of byte pairs on 5.3 MB of Shakespeare, at equal bytes of text read.

    python experiments/learning/pairs.py FOLDER [small] [large]

The runs of `small` train llama-s with characters and with 500 to 4,000 byte pairs. Those of `large` train llama-m with
characters and with 2,000 byte pairs, as many as randyGPT's best published run has. Each run reads MEGABYTES of text.
The runs stay in FOLDER, and one that was interrupted is resumed.
"""

import sys
from pathlib import Path

from table import measure, settings

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer

CORPUS = "gutenberg-shakespeare"
MEGABYTES = {"small": 3, "large": 15}
SIZES = {"small": [0, 500, 1000, 2000, 4000], "large": [0, 2000]}  # 0 stands for characters
PRESETS = {"small": "llama-s", "large": "llama-m"}


def vocabulary(size: int) -> list[str]:
    """Returns the arguments for byte pairs, or none for characters."""
    return ["--bpe", str(size)] if size else []


def bytes_per_token(size: int) -> float:
    """Returns the mean number of bytes of a token of the text."""
    corpus = open_corpus((CORPUS,))
    data = DataConfig(corpus=(CORPUS,), tokenizer="bpe" if size else "char", vocab_size=size or 2000)
    return corpus.num_bytes / len(encode(corpus, make_tokenizer(corpus, data, print), print).ids)


for group in sys.argv[2:] or ["small", "large"]:
    variants = {}
    for size in SIZES[group]:
        tokens = round(MEGABYTES[group] * 1e6 / bytes_per_token(size))
        variants[f"{size:,} ids" if size else "characters"] = [*vocabulary(size), "--tokens", str(tokens)]
    measure(
        f"pairs_{group}",
        variants,
        seeds=[1, 2, 3] if group == "small" else [1],
        common=[
            *("--preset", PRESETS[group], "--corpus", CORPUS, "--sample-every", "0"),
            *settings({"train.save_minutes": 2}),
        ],
        folder=Path(sys.argv[1]),
    )
