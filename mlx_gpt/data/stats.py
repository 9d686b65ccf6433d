"""What can be said of a text before training: its size, its tokens, and how well two of them foretell the next."""

import math
from collections import Counter

import numpy as np

from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.tokens import Tokens

MAX_IDS = 1 << 11  # alphabets above are no characters to count in threes
BACKOFF = 1.0  # letters' worth of trust in the shorter context


def stats(corpus: Corpus, tokenizer, tokens: Tokens, val_fraction: float, most_common: int = 10) -> dict:
    """Sizes, the most frequent tokens as (text, share), and order2_loss(), in nats and bits a token."""
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
    """Nats a token on `val` of a model that counts, in `train`, what follows each two tokens.

    What two tokens foretell is mixed with what one does, that with what none does, and that with a uniform guess.
    """
    probability = np.full(len(val), 1 / vocab_size)
    for order in range(3):
        contexts, followed = (Counter(_runs(train, n).tolist()) for n in (order, order + 1))
        past = np.array([contexts[run] for run in _runs(val[:-1], order).tolist()])
        hits = np.array([followed[run] for run in _runs(val, order + 1).tolist()])
        mixed = (hits + BACKOFF * probability[order:]) / (past + BACKOFF)
        probability = np.concatenate([probability[:order], mixed])
    return float(-np.log(probability).mean())


def _runs(ids: np.ndarray, length: int) -> np.ndarray:
    """Each run of `length` ids as one number, (N - length + 1,)."""
    count = max(len(ids) - length + 1, 0)
    places = (ids[i : i + count].astype(np.int64) * MAX_IDS ** (length - 1 - i) for i in range(length))
    return sum(places, np.zeros(count, np.int64))


def _ids(tokens: Tokens) -> np.ndarray:
    """All ids of a split, documents one after the other."""
    host = tokens.ids.host
    return np.concatenate([host[b : b + n] for b, n in zip(tokens.begins, tokens.lengths, strict=True)])
