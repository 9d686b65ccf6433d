"""Compares vocabularies of byte pairs on 5.3 MB of Shakespeare.

    python experiments/learning/pairs.py FOLDER [small] [large]

The runs of `small` train llama-s with characters and with 500 to 4,000 byte pairs on BYTES of text, with three seeds.
Those of `large` train llama-m on TOKENS tokens, with characters and with 2,000 byte pairs, as many ids as in randyGPT's
best published run. The runs stay in FOLDER, and one that was interrupted is resumed.
"""

import sys

from table import chosen, folder_argument, measure, settings

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer

CORPUS, BYTES, TOKENS = "gutenberg-shakespeare", 1_500_000, 2_500_000
SIZES = (0, 500, 1000, 2000, 4000)  # 0 stands for characters


def arguments(size: int, tokens: int) -> list[str]:
    """Returns the arguments for a vocabulary of `size` ids and a number of tokens."""
    return [*(["--bpe", str(size)] if size else []), "--tokens", str(tokens)]


def tokens_of(size: int) -> int:
    """Returns the number of tokens of BYTES of the text."""
    corpus = open_corpus((CORPUS,))
    data = DataConfig(corpus=(CORPUS,), tokenizer="bpe" if size else "char", vocab_size=size or 2000)
    return round(BYTES * len(encode(corpus, make_tokenizer(corpus, data, print), print)) / corpus.num_bytes)


def named(size: int) -> str:
    return f"{size:,} ids" if size else "characters"


def small() -> dict[str, list[str]]:
    return {named(size): ["--preset", "llama-s", *arguments(size, tokens_of(size))] for size in SIZES}


def large() -> dict[str, list[str]]:
    return {named(size): ["--preset", "llama-m", *arguments(size, TOKENS)] for size in (0, 2000)}


FOLDER = folder_argument()
GROUPS = {"small": (small, [1, 2, 3]), "large": (large, [1])}
for group in chosen(sys.argv[2:], GROUPS):
    variants, seeds = GROUPS[group]
    measure(
        f"pairs_{group}",
        variants(),
        seeds,
        common=["--corpus", CORPUS, "--sample-every", "0", *settings({"train.save_minutes": 2})],
        folder=FOLDER,
    )
