"""Statistics of a corpus: its size, its most frequent tokens, its duplicates, and the loss of a trigram model.

The trigram model is called a model of order 2: it predicts each token from the two tokens before it.
"""

import hashlib
import math
from collections import Counter

import numpy as np

from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows

MAX_IDS = 1 << 11  # largest vocabulary of the trigram model; with more ids, most trigrams are too rare to count
WINDOW = 64  # tokens of a window that is compared with others
PASSAGES, PASSAGE = 3, 32  # number of decoded passages, and their length in tokens
CHUNK = 1 << 20  # ids that are counted at a time
BACKOFF = 1.0  # pseudo-count by which the estimate from the shorter context is weighted


def stats(corpus: Corpus, tokenizer, tokens: Tokens, val_fraction: float, most_common: int = 10, seed: int = 0) -> dict:
    """Computes the statistics that `mlxgpt corpus stats` reports.

    Args:
        corpus: the corpus.
        tokenizer: its tokenizer.
        tokens: the encoded corpus.
        val_fraction: the fraction of the tokens at the end of each source that the trigram model is evaluated on.
        most_common: the number of most frequent tokens to return.
        seed: the random seed of the passages.

    Returns:
        A dict of JSON values. `bytes` counts the UTF-8 bytes of the text without characters that are not in the
        vocabulary. `most_common` is a list of (text, share of all tokens). `order2_nats` and `order2_bits` are the loss
        of the trigram model per token. They are present if the vocabulary has at most MAX_IDS ids. `unused` is the
        number of ids that never occur. `lengths` has the smallest, median and largest number of tokens of a document,
        and `longest_tenth`, the share of the tokens that the longest tenth of the documents has. `passages` are
        texts of PASSAGES random passages. `duplicate_documents` counts the documents that are equal to an earlier one.
        `duplicate_windows` does the same for the `windows` of WINDOW tokens that the documents divide into.
    """
    counts = sum(
        np.bincount(tokens.ids.host[i : i + CHUNK], minlength=tokenizer.vocab_size)
        for i in range(0, len(tokens.ids.host), CHUNK)
    )
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
    facts |= {"unused": int((counts == 0).sum()), "lengths": _lengths(tokens.lengths)} | _duplicates(tokens)
    facts["passages"] = _passages(tokens, tokenizer, seed)
    if tokenizer.vocab_size <= MAX_IDS:
        train, val = tokens.split(val_fraction)
        loss = order2_loss(_ids(train), _ids(val), tokenizer.vocab_size)
        facts |= {"order2_nats": round(loss, 4), "order2_bits": round(loss / math.log(2), 4)}
    return facts


def _lengths(lengths: np.ndarray) -> dict:
    """Returns how the tokens are divided among the documents."""
    tenth = np.sort(lengths)[-max(len(lengths) // 10, 1) :]
    median = float(np.median(lengths))
    return {
        "min": int(lengths.min()),
        "median": median,
        "max": int(lengths.max()),
        "longest_tenth": round(float(tenth.sum() / lengths.sum()), 5),
    }


def _duplicates(tokens: Tokens) -> dict:
    """Counts exact duplicates of documents and windows, by hashes of 128 bits. A window lies within a document."""
    documents, windows, count = set(), set(), 0
    for begin, length in zip(tokens.begins.tolist(), tokens.lengths.tolist(), strict=True):
        whole = hashlib.blake2b(digest_size=16)
        for i in range(begin, begin + length, WINDOW):
            ids = tokens.ids.host[i : min(i + WINDOW, begin + length)].tobytes()
            whole.update(ids)
            if i + WINDOW <= begin + length:
                windows.add(hashlib.blake2b(ids, digest_size=16).digest())
                count += 1
        documents.add(whole.digest())
    return {
        "duplicate_documents": len(tokens.lengths) - len(documents),
        "windows": count,
        "duplicate_windows": count - len(windows),
    }


def _passages(tokens: Tokens, tokenizer, seed: int) -> list[str]:
    """Returns the texts of random passages."""
    if not (tokens.lengths > 1).any():
        return []
    starts, ends = Windows(tokens, PASSAGE, on_device=False).draw(seed, "passages", 0, PASSAGES)
    places = zip(starts.tolist(), ends.tolist(), strict=True)
    return [tokenizer.decode(tokens.ids.host[i : min(i + PASSAGE, end)].tolist()) for i, end in places]


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
