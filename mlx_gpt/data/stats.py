"""Statistics of a corpus: its size, its most frequent tokens, and the loss of a trigram model as a baseline.

The trigram model is called a model of order 2: it predicts each token from the two tokens before it.
"""

import math
from collections import Counter

import numpy as np

from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.tokens import Tokens

MAX_IDS = 1 << 11  # largest vocabulary of the trigram model; with more ids, most trigrams are too rare to count
BACKOFF = 1.0  # pseudo-count by which the estimate from the shorter context is weighted


def stats(corpus: Corpus, tokenizer, tokens: Tokens, val_fraction: float, most_common: int = 10) -> dict:
    """Computes the statistics that `mlxgpt corpus stats` reports.

    Args:
        corpus: the corpus.
        tokenizer: its tokenizer.
        tokens: the encoded corpus.
        val_fraction: the fraction of the tokens at the end of each source that the trigram model is evaluated on.
        most_common: the number of most frequent tokens to return.

    Returns:
        A dict of JSON values. `bytes` counts the UTF-8 bytes of the text without characters that are not in the
        vocabulary. `most_common` is a list of (text, share of all tokens). `order2_nats` and `order2_bits` are the loss
        of the trigram model per token. They are present if the vocabulary has at most MAX_IDS ids.
    """
    counts = np.bincount(np.asarray(tokens.ids.host), minlength=tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:most_common]
    facts = {
        "name": corpus.name,
        "bytes": int(counts @ tokenizer.token_bytes()),
        "documents": len(tokens.lengths),
        "tokens": len(tokens),
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": round(float(counts @ tokenizer.token_bytes() / max(counts.sum(), 1)), 3),
        "most_common": [
            (tokenizer.decode([i]), round(counts[i] / counts.sum(), 5)) for i in order.tolist() if counts[i]
        ],
    }
    if tokenizer.vocab_size <= MAX_IDS:
        train, val = tokens.split(val_fraction)
        loss = order2_loss(_ids(train), _ids(val), tokenizer.vocab_size)
        facts |= {"order2_nats": round(loss, 4), "order2_bits": round(loss / math.log(2), 4)}
    return facts


def order2_loss(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """Returns the loss on `val` of a trigram model whose counts are taken from `train`.

    The probability of token x after a context of n tokens is an interpolation of its relative frequency in `train` and
    its probability p_{n-1} after the last n - 1 tokens of the context:

        p_n(x) = (count(context, x) + BACKOFF * p_{n-1}(x)) / (count(context) + BACKOFF),   n = 0, 1, 2

    where p_{-1} = 1 / vocab_size. The first token of `val` is predicted with p_0, the second with p_1, and all others
    with p_2. count(context) includes a context at the very end of `train`, which no token follows.

    Args:
        train: ids below MAX_IDS, (N,).
        val: ids below MAX_IDS, (M,).
        vocab_size: the number of ids, at most MAX_IDS.

    Returns:
        The mean loss in nats per token.
    """
    probability = np.full(len(val), 1 / vocab_size)
    for order in range(3):
        context_counts, counts = (Counter(_ngrams(train, n).tolist()) for n in (order, order + 1))
        past = np.array([context_counts[ngram] for ngram in _ngrams(val[:-1], order).tolist()])
        hits = np.array([counts[ngram] for ngram in _ngrams(val, order + 1).tolist()])
        mixed = (hits + BACKOFF * probability[order:]) / (past + BACKOFF)
        probability = np.concatenate([probability[:order], mixed])
    return float(-np.log(probability).mean())


def _ngrams(ids: np.ndarray, length: int) -> np.ndarray:
    """Returns each run of `length` consecutive ids as one number in base MAX_IDS, (N - length + 1,) int64.

    With length 0, it returns N + 1 zeros: the empty n-gram occurs before and after every id.
    """
    count = max(len(ids) - length + 1, 0)
    digits = (ids[i : i + count].astype(np.int64) * MAX_IDS ** (length - 1 - i) for i in range(length))
    return sum(digits, np.zeros(count, np.int64))


def _ids(tokens: Tokens) -> np.ndarray:
    """Returns the ids of all documents of a split, concatenated, (N,)."""
    host = tokens.ids.host
    return np.concatenate([host[b : b + n] for b, n in zip(tokens.begins, tokens.lengths, strict=True)])
