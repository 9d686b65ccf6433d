"""The character 5-gram model, against counting."""

from collections import Counter

import numpy as np
import pytest

from mlx_gpt.code.ngram import NGram

TEXT = "".join(np.random.default_rng(3).choice(list("ab c\né"), 3000, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]))


def test_each_character_follows_as_often_as_in_the_text():
    context = "ab a"
    after = Counter(TEXT[i + 4] for i in range(len(TEXT) - 4) if TEXT[i : i + 4] == context)
    model, total = NGram(TEXT), sum(after.values())
    drawn = Counter(model.generate(context, 1, 1.0, 0, seed) for seed in range(4000))
    assert drawn.keys() == after.keys()
    for character, count in after.items():
        share = count / total
        assert drawn[character] / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_an_unseen_context_is_shortened_until_the_text_has_it():
    model = NGram("abcdefgh")
    assert model.generate("hhh ab", 4, 1.0, 0, 0) == "cdef"
    assert model.generate("xyzh", 1, 0, 0, 0) in "abcdefgh"
    assert NGram("a").generate("", 3, 1.0, 0, 0) == "aaa"


def test_temperature_and_top_k_select_the_most_likely():
    text = "aab" * 50 + "aac" * 10
    model = NGram(text)
    for options in ((0, 0), (1.0, 1)):
        assert {model.generate("aa", 1, *options, seed) for seed in range(50)} == {"b"}
    assert {model.generate("aa", 1, 1.0, 0, seed) for seed in range(50)} == {"b", "c"}


def test_a_seed_gives_the_same_text_whatever_was_written_before():
    model = NGram(TEXT)
    texts = [model.generate("a", 50, 0.8, 5, seed) for seed in range(5)]
    assert texts == [NGram(TEXT).generate("a", 50, 0.8, 5, seed) for seed in range(5)]
    assert len(set(texts)) == 5
    assert set("".join(texts)) <= set(TEXT)


def test_four_characters_of_the_text_so_far_count():
    """After "aaaa" comes b and after "baaa" comes a; after "aaa" alone come both."""
    text = NGram("aaaab" * 50).generate("b", 500, 1.0, 0, 1)
    assert text == "aaaab" * 100
