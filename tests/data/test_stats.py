"""Statistics of a text, and what can be learned from it."""

import math

import numpy as np
import pytest

from mlx_gpt.data import markov
from mlx_gpt.data.corpus import Corpus, Source, open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.stats import order2_loss, stats
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import UserError


def corpus_of(*documents):
    return Corpus("c", (Source("c", 1.0, sum(map(len, documents)), lambda: [[d] for d in documents]),))


@pytest.mark.parametrize("order", range(4))
def test_a_chains_entropy_rate_is_that_of_its_text(order):
    """The rate from the stationary distribution, against what the known probabilities say of the drawn text."""
    chain = markov.Chain(order, length=200_000)
    text = "".join(chain.pieces())
    probabilities, A = chain.probabilities, len(markov.LETTERS)
    letters = np.array([markov.LETTERS.index(c) for c in text])
    context = sum((np.roll(letters, k) * A ** (k - 1) for k in range(1, order + 1)), np.zeros(len(letters), int))
    loss = -np.log(probabilities[context, letters])[order:]
    assert chain.entropy_rate() == pytest.approx(loss.mean(), abs=5 * loss.std() / len(loss) ** 0.5)
    assert probabilities.shape == (A**order, A) and np.allclose(probabilities.sum(1), 1)


def test_chains_are_corpora():
    one, two = open_corpus(["markov:1"]), open_corpus(["markov:2:3"])
    assert one.fingerprint == open_corpus(["markov:1"]).fingerprint != two.fingerprint
    assert two.weights == (3.0,) and "entropy rate" in one.notes[0]
    assert len(one.documents[0]) == 1_000_000
    for name in ("markov:9", "markov:x", "markov:"):
        with pytest.raises(UserError, match="order from 0 to 4"):
            open_corpus([name])


def reference_order2(train, val, vocab_size):
    def mixed(past, letter):
        if past is None:
            return 1 / vocab_size
        shorter = past[1:] if past else None
        n = len(past)
        times = sum(train[i : i + n] == past for i in range(len(train) - n + 1))
        hits = sum(train[i : i + n + 1] == [*past, letter] for i in range(len(train) - n))
        return (hits + mixed(shorter, letter)) / (times + 1)

    losses = [-math.log(mixed(val[max(i - 2, 0) : i], c)) for i, c in enumerate(val)]
    return sum(losses) / len(losses)


def test_the_order_2_model_is_its_definition():
    draw = np.random.default_rng(0)
    train, val = draw.integers(0, 4, 60), draw.integers(0, 5, 30)
    assert order2_loss(train, val, 5) == pytest.approx(reference_order2(train.tolist(), val.tolist(), 5), rel=1e-9)


def test_stats_say_what_a_text_is():
    corpus = corpus_of("aab\n" * 50, "éa")
    tokenizer = CharTokenizer.train(corpus.texts())
    facts = stats(corpus, tokenizer, encode(corpus, tokenizer, print), 0.1)
    assert (facts["documents"], facts["tokens"], facts["bytes"], facts["vocab_size"]) == (2, 204, 203, 6)
    assert facts["most_common"][0] == ("a", round(101 / 204, 5))
    assert 0 < facts["order2_nats"] < math.log(6)
