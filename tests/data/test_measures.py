"""Measures of texts, against what their definitions count on small texts."""

import itertools

import numpy as np
import pytest

from mlx_gpt.data.corpus import Piece
from mlx_gpt.data.measures import Measures, SuffixAutomaton, measure

PLAY = "ROMEO:\nO, she doth teach the torches to burn bright!\n\nJULIET:\nAy me!\n"


def measures_of(texts, training=PLAY) -> Measures:
    return measure([texts], [Piece(training, True)])[0]


def drawn(seed, letters, size):
    return "".join(np.random.default_rng(seed).choice(list(letters), size))


def common(texts, documents):
    """The length of the longest string that is in a text and in a document."""
    parts = {text[i:j] for text in texts for i, j in itertools.combinations(range(len(text) + 1), 2)}
    return max((len(part) for part in parts if any(part in document for document in documents)), default=0)


@pytest.mark.parametrize("seed", range(60))
def test_the_longest_copy_is_that_of_all_substrings(seed):
    """Of several texts and documents, which are read in pieces of any length. It is in one text and one document."""
    letters = "ab" if seed % 2 else "abcd "
    texts = [drawn([seed, i], letters, 5 + seed % 20) for i in range(1 + seed % 3)]
    documents = [drawn([seed, 9, i], letters, 3 + 4 * i) for i in range(5)]
    automaton = SuffixAutomaton(texts)
    for number, document in enumerate(documents):
        for i in range(0, len(document), number + 1):
            automaton.read(document[i : i + number + 1], i + number + 1 >= len(document))
    assert len(automaton.longest) == common(texts, documents)
    assert any(automaton.longest in text for text in texts)
    assert any(automaton.longest in document for document in documents)


def test_the_automaton_is_small():
    """At most twice as many states as characters, also for the worst texts."""
    for text in ("a" * 500, "ab" * 250, "a" * 250 + "b" * 250, drawn(0, "ab", 500), "a" + "b" * 499):
        assert len(SuffixAutomaton([text])._next) <= 2 * len(text)


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_words_are_counted_as_defined(seed):
    texts = [" ".join(np.random.default_rng([seed, i]).choice(["a", "b", "c"], 30)) for i in range(3)]
    found, words = measures_of(texts), [text.split() for text in texts]
    assert found.words == 90
    for n, share in ((1, found.distinct_1), (2, found.distinct_2), (3, found.distinct_3)):
        runs = [tuple(each[i : i + n]) for each in words for i in range(len(each) - n + 1)]
        assert share == len(set(runs)) / len(runs)
    repeated = sum(each[i : i + 4] in [each[j : j + 4] for j in range(i)] for each in words for i in range(27))
    assert found.repeated_4grams == repeated / (3 * 27)


def test_repetition_is_that_of_one_text():
    """Two equal texts do not repeat themselves, and a loop does."""
    text = "one two three four five six"
    assert measures_of([text, text]).repeated_4grams == 0
    assert measures_of(["one two three four " * 10]).repeated_4grams == 1 - 4 / 37


def test_words_lines_and_speakers():
    found = measures_of(["ROMEO:\nThe torches burn, isn't it\n\nHAMLET:\nAy\nnote: this\n"])
    assert found.words == 10 and found.known_words == 5 / 10
    assert found.line_length == pytest.approx((6 + 26 + 7 + 2 + 10) / 5) and found.longest_line == 26
    assert found.speaker_lines == 2 / 5 and found.known_speakers == 1 / 2
    assert found.copy == "he torches " and found.longest_copy == 11


def test_a_text_that_is_no_play_has_no_speakers():
    found = measures_of(["ROMEO:\n"], "To be:\n" + "a line of prose\n" * 200)
    assert found.speaker_lines is None and found.known_speakers is None


def test_an_empty_text_has_no_measures():
    found = measures_of([""])
    assert (found.characters, found.words, found.longest_line, found.copy) == (0, 0, 0, "")
    assert found.repeated_4grams is found.known_words is found.distinct_1 is found.line_length is None
    assert found.speaker_lines is found.known_speakers is None
    assert measures_of(["a"], "").known_words == 0


def test_groups_are_measured_beside_each_other_whatever_the_pieces_are():
    groups = [["ROMEO:\nshe doth burn"], ["torches to burn", "Ay me!"]]
    lines = [Piece(part, False) for part in PLAY.splitlines(keepends=True)]
    both = measure(groups, [*lines[:-1], lines[-1]._replace(ends=True)])
    assert both == [measures_of(group) for group in groups]
