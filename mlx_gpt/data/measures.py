"""Measures of texts, such as those that a model generates: repetition, and likeness to the training text.

The longest passage that is copied from the training text is found with a suffix automaton of the measured texts
(Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985). The training text is read once, in
pieces. The memory is proportional to the measured texts and to the number of different words of the training text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlx_gpt.data.corpus import Piece

WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
SPEAKER = re.compile(r"([A-Z][\w'\u2019 .-]{0,39}):")  # a whole line
MIN_SPEAKERS = 0.01  # share of the lines of a training text from which on it is a play
NGRAM = 4  # words of the n-grams whose repetition is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Measures of some texts. A measure without anything to count is None.

    Attributes:
        characters: number of characters.
        words: number of words: letters, digits and apostrophes between spaces and other characters, in lower case.
        repeated_4grams: share of the runs of four words that occur before in the same text.
        known_words: share of the words that the training text has.
        distinct_1, distinct_2, distinct_3: number of different runs of one, two and three words, divided by the number
            of these runs, over all texts.
        line_length: mean number of characters of the lines that are not blank.
        longest_line: number of characters of the longest line.
        longest_copy: number of characters of the longest passage that the training text has too.
        copy: this passage.
        speaker_lines: share of the lines that are not blank and have the form `NAME:`. None if the training text is no
            play: fewer than 1% of its lines have this form.
        known_speakers: share of the speaker lines whose name is a speaker of the training text.
    """

    characters: int
    words: int
    repeated_4grams: float | None
    known_words: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    line_length: float | None
    longest_line: int
    longest_copy: int
    copy: str
    speaker_lines: float | None
    known_speakers: float | None


def measure(groups: Sequence[Sequence[str]], training: Iterable[Piece]) -> list[Measures]:
    """Measures groups of texts against one training text.

    Args:
        groups: the texts of each group.
        training: the documents of the training text in pieces, which is read once. No word or line lies across the
            border of two pieces.

    Returns:
        The measures of each group.
    """
    automata = [SuffixAutomaton(texts) for texts in groups]
    words, speakers, num_lines, num_speakers = set(), set(), 0, 0
    for text, ends in training:
        words.update(words_of(text))
        lines = lines_of(text)
        named = speakers_of(lines)
        speakers.update(named)
        num_lines, num_speakers = num_lines + len(lines), num_speakers + len(named)
        for automaton in automata:
            automaton.read(text, ends)
    is_play = num_speakers >= max(MIN_SPEAKERS * num_lines, 1)
    pairs = zip(groups, automata, strict=True)
    return [_measures(texts, words, speakers if is_play else None, automaton.longest) for texts, automaton in pairs]


def _measures(texts: Sequence[str], known: set[str], speakers: set[str] | None, copy: str) -> Measures:
    words, lines = [words_of(text) for text in texts], [line for text in texts for line in lines_of(text)]
    flat = [word for each in words for word in each]
    runs = [ngrams(each, NGRAM) for each in words]
    distinct = [[run for each in words for run in ngrams(each, n)] for n in (1, 2, 3)]
    named = speakers_of(lines)
    return Measures(
        characters=sum(map(len, texts)),
        words=len(flat),
        repeated_4grams=_share(sum(len(each) - len(set(each)) for each in runs), sum(map(len, runs))),
        known_words=_share(sum(word in known for word in flat), len(flat)),
        **{f"distinct_{n}": _share(len(set(each)), len(each)) for n, each in enumerate(distinct, 1)},
        line_length=_share(sum(map(len, lines)), len(lines)),
        longest_line=max(map(len, lines), default=0),
        longest_copy=len(copy),
        copy=copy,
        speaker_lines=None if speakers is None else _share(len(named), len(lines)),
        known_speakers=None if speakers is None else _share(sum(name in speakers for name in named), len(named)),
    )


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in lower case."""
    return WORD.findall(text.lower())


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def speakers_of(lines: Iterable[str]) -> list[str]:
    """Returns the names of the lines that have the form `NAME:`."""
    return [match[1] for line in lines if (match := SPEAKER.fullmatch(line))]


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Returns each run of n consecutive words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _share(count: float, total: int) -> float | None:
    return count / total if total else None


class SuffixAutomaton:
    """All substrings of some texts, as an automaton of at most twice as many states as the texts have characters.

    A state stands for substrings that end at the same places. `_length` is that of the longest of them, `_end` the end
    of one of these places, and `_link` the state of the longest suffix that ends at further places.

    Args:
        texts: the texts. A substring lies within one text.

    Attributes:
        longest: the longest substring of the texts that read() has found so far.
    """

    def __init__(self, texts: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [0]
        # UTF-8 text has no lone surrogates, so no substring that is found lies across one.
        self._text, self.longest = "\ud800".join(texts), ""
        last = 0
        for end, character in enumerate(self._text, 1):
            last = self._extend(last, character, end)
        self._state, self._matched = 0, 0

    def _extend(self, last: int, character: str, end: int) -> int:
        """Adds a character after the text so far, whose state is `last`. Returns the state of the longer text."""
        state = self._add({}, end, self._length[last] + 1)
        while last >= 0 and character not in self._next[last]:
            self._next[last][character] = state
            last = self._link[last]
        if last < 0:
            self._link[state] = 0
            return state
        other = self._next[last][character]
        if self._length[last] + 1 < self._length[other]:
            # Only the shorter substrings of `other` end here too, so they get a state of their own.
            shorter = self._add(dict(self._next[other]), self._end[other], self._length[last] + 1)
            self._link[shorter], self._link[other] = self._link[other], shorter
            while last >= 0 and self._next[last].get(character) == other:
                self._next[last][character] = shorter
                last = self._link[last]
            other = shorter
        self._link[state] = other
        return state

    def _add(self, following: dict[str, int], end: int, length: int) -> int:
        self._next.append(following)
        self._link.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1

    def read(self, text: str, ends: bool = True) -> None:
        """Reads a piece of a document, and updates `longest`. A substring lies within one document.

        Args:
            text: the piece.
            ends: whether it is the last one of its document.
        """
        state, matched, best, place = self._state, self._matched, len(self.longest), None
        following, link, length = self._next, self._link, self._length
        for character in text:
            while state and character not in following[state]:
                state = link[state]
                matched = length[state]
            if character in following[state]:
                state = following[state][character]
                matched += 1
                if matched > best:
                    best, place = matched, self._end[state]
        if place is not None:
            self.longest = self._text[place - best : place]
        self._state, self._matched = (0, 0) if ends else (state, matched)
