"""Statistics of a corpus: its size, its tokens, and the loss of an order-2 count model as a baseline."""

import math
from collections import Counter

import numpy as np

from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.tokens import Tokens

MAX_IDS = 1 << 11  # above this vocabulary size most token triples are too rare to count
BACKOFF = 1.0  # pseudo-count of the shorter context's estimate


def stats(corpus: Corpus, tokenizer, tokens: Tokens, val_fraction: float, most_common: int = 10) -> dict:
    """Computes the statistics that `mlxgpt corpus stats` reports.

    Returns:
        Sizes, the `most_common` most frequent tokens as (text, share), and, for vocabularies of at most MAX_IDS ids,
        order2_loss() in nats and bits per token.
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
    """Returns the loss on `val` of a model that counts token triples in `train`.

    The probability of token x after a context of n tokens interpolates the counts with the context of n - 1 tokens:

        p_n(x) = (count(context, x) + BACKOFF * p_{n-1}(x)) / (count(context) + BACKOFF),   n = 0, 1, 2

    where p_{-1} = 1 / vocab_size. The first two tokens of `val` have shorter contexts.

    Args:
        train: (N,) ids below MAX_IDS.
        val: (M,) ids below MAX_IDS.
        vocab_size: the number of ids.

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
    """Encodes each run of `length` consecutive ids as one number in base MAX_IDS, (N - length + 1,) int64."""
    count = max(len(ids) - length + 1, 0)
    digits = (ids[i : i + count].astype(np.int64) * MAX_IDS ** (length - 1 - i) for i in range(length))
    return sum(digits, np.zeros(count, np.int64))


def _ids(tokens: Tokens) -> np.ndarray:
    """Returns the ids of a split's documents, one after the other."""
    host = tokens.ids.host
    return np.concatenate([host[b : b + n] for b, n in zip(tokens.begins, tokens.lengths, strict=True)])
