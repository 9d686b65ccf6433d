"""Training of a byte-pair encoding of characters: learns the merges from text, the most frequent pair first.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909, algorithm 1.
All pairs are counted once at the start. After that, each merge updates only the counts of the pairs that contain a
merged token.

Example: the text is two lines, "abab" and "abc", and a, b, c have the ids 2, 3, 4. Three merges are requested.

| tokens          | counts                    | merge            |
| --------------- | ------------------------- | ---------------- |
| a b a b / a b c | (a,b) 3, (b,a) 1, (b,c) 1 | (a, b) -> id 5   |
| ab ab / ab c    | (ab,c) 1, (ab,ab) 1       | (ab, c) -> id 6  |
| ab ab / abc     | (ab,ab) 1                 | (ab, ab) -> id 7 |

In the second row both pairs occur once. The pair (ab, c) is merged first, since its ids (5, 4) are lower than the ids
(5, 5) of (ab, ab).

This is the rule `lines`. randyGPT trains by another rule, see RULES.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_gpt.data.tokenizer import code_points

Merge = tuple[str, str]  # the left and the right string
BORDER = 0  # the id that separates lines or texts: that of BOS, which no text contains


@dataclass(frozen=True)
class Rule:
    """A rule that chooses the merges.

    Attributes:
        across_lines: Whether the texts are one sequence, in which a newline is a character like others. If not, pairs
            are counted within lines, and no pair contains a newline.
        higher_ids_first: Of equally frequent pairs, whether the one with the higher left id is merged first, then the
            one with the higher right id. If not, lower ids are first.
        repeats: Whether a pair is merged although its concatenation is in the vocabulary. If not, no string occurs
            twice: (a, bc) and (ab, c) are never both merged.
    """

    across_lines: bool
    higher_ids_first: bool
    repeats: bool


# The rules by name. The tokenizer encodes lines separately, so it never uses a merge that contains a newline.
RULES = {
    "lines": Rule(across_lines=False, higher_ids_first=False, repeats=False),
    "randygpt": Rule(across_lines=True, higher_ids_first=True, repeats=True),
}


def learn_merges(
    texts: Iterable[str], vocab: Sequence[str], first: int, vocab_size: int, rule: str = "lines"
) -> list[Merge]:
    """Learns merges until the vocabulary has `vocab_size` strings or the text has no more pairs.

    Each merge replaces the most frequent pair of adjacent tokens by one token with the next free id.

    The example of the module docstring:

    >>> learn_merges(["abab\\nabc"], ["<|bos|>", "<|eos|>", "a", "b", "c"], first=2, vocab_size=8)
    [('a', 'b'), ('ab', 'c'), ('ab', 'ab')]

    Args:
        texts: the texts. Pairs across the end of a text are counted only if the rule has `across_lines`.
        vocab: the initial vocabulary: `first` special tokens, then characters in code-point order. Every character of
            the texts must be among them.
        first: the id of the first character.
        vocab_size: the number of strings to reach.
        rule: the name of a rule in RULES.

    Returns:
        The merges in order, at most vocab_size - len(vocab) of them.
    """
    vocab, known, merges, rule = list(vocab), set(vocab), [], RULES[rule]
    tokens = TokenizedText(_ids(texts, vocab[first:], first, rule.across_lines), vocab_size)
    counts = PairCounts(rule.higher_ids_first)
    counts.add(tokens.pairs(np.arange(len(tokens.ids) - 1)))
    while len(vocab) < vocab_size and (pair := counts.pop()):
        left, right = pair
        string = vocab[left] + vocab[right]
        if string in known and not rule.repeats:
            continue
        # The tokens x left right y become x merged y. The pairs that begin at x, left and right are subtracted, and the
        # new pairs that begin at x and merged are added.
        starts = tokens.find(left, right)
        before = tokens.before(starts, left)
        counts.subtract(tokens.pairs(np.concatenate([before, starts, starts + tokens.lengths[left]])))
        tokens.merge(starts, left, right, len(vocab))
        counts.add(tokens.pairs(np.concatenate([before, starts])))
        merges.append((vocab[left], vocab[right]))
        vocab.append(string)
        known.add(string)
    return merges


class PairCounts:
    """The counts of pairs of ids, and a heap that finds the most frequent pair.

    An entry of the heap is outdated if the count of its pair changed after the push. A lower count is not pushed at
    once. Instead, an outdated entry that is popped is pushed again with the current count.

    Args:
        higher_ids_first: As in Rule.
    """

    def __init__(self, higher_ids_first: bool):
        self._counts: Counter[tuple[int, int]] = Counter()
        self._heap: list[tuple[int, int, int]] = []
        self._sign = -1 if higher_ids_first else 1  # the heap pops its smallest entry first

    def add(self, pairs: Iterable[tuple[tuple[int, int], int]]) -> None:
        """Adds to the counts, for each pair the given number."""
        for pair, number in pairs:
            self._counts[pair] += number
            self._push(pair)

    def subtract(self, pairs: Iterable[tuple[tuple[int, int], int]]) -> None:
        """Subtracts from the counts, for each pair the given number."""
        for pair, number in pairs:
            self._counts[pair] -= number

    def pop(self) -> tuple[int, int] | None:
        """Removes the most frequent pair from the heap and returns it; None if there is no pair."""
        while self._heap:
            number, left, right = heapq.heappop(self._heap)
            pair = left * self._sign, right * self._sign
            if -number == self._counts[pair]:
                return pair
            if self._counts[pair]:
                self._push(pair)
        return None

    def _push(self, pair: tuple[int, int]) -> None:
        heapq.heappush(self._heap, (-self._counts[pair], pair[0] * self._sign, pair[1] * self._sign))


class TokenizedText:
    """A text of N characters, split into tokens, in arrays that make a merge cheap.

    A position is the index of a character. The token after the token at position i begins at i + lengths[ids[i]]. The
    token before it begins at begins[i - 1]. Neighbors are thus found without a search, and merging one occurrence of a
    pair writes three elements.

    Example: the text "abab" between two borders, with a = 2 and b = 3, and the merge of (a, b) to id 5. The elements of
    `begins` that are shown are those at the last characters of the tokens:

    >>> text = TokenizedText(np.array([0, 2, 3, 2, 3, 0], np.int32), vocab_size=8)
    >>> starts = text.find(2, 3)
    >>> starts.tolist()
    [1, 3]
    >>> text.merge(starts, 2, 3, merged=5)
    >>> text.ids.tolist(), text.begins[[0, 2, 4, 5]].tolist()
    ([0, 5, -1, 5, -1, 0], [0, 1, 3, 5])

    Args:
        ids: (N,) int32, one id for each character, with BORDER at both ends and wherever no pair is. Merges change it.
        vocab_size: V, the number of ids after all merges.

    Attributes:
        ids: (N,) int32. At the first character of a token its id, at its other characters -1.
        begins: (N,) int64. At the last character of a token the position of its first character. Other elements are
            not used.
        lengths: (V,) int64. The number of characters of each id.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int):
        self.ids, self.begins = ids, np.arange(len(ids))
        self.lengths = np.ones(vocab_size, np.intp)
        # The sorted positions of each id. After merges some of them are outdated, until _positions_of removes them.
        # In the smallest dtype, since NumPy sorts integers of 8 or 16 bits with a radix sort in O(N).
        order = np.argsort(ids.astype(np.min_scalar_type(ids.max())), kind="stable")
        self._positions = dict(enumerate(np.split(order, np.cumsum(np.bincount(ids))[:-1])))

    def pairs(self, starts: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
        """Yields each distinct pair (left id, right id) that begins at one of `starts`, and the number of its starts.

        Pairs that contain BORDER are left out.
        """
        left = self.ids[starts]
        right = self.ids[starts + self.lengths[left]]
        inside = (left != BORDER) & (right != BORDER)
        size = len(self.lengths)
        # A pair is counted as the integer left * V + right.
        codes, numbers = np.unique(left[inside].astype(np.int64) * size + right[inside], return_counts=True)
        return ((divmod(code, size), number) for code, number in zip(codes.tolist(), numbers.tolist(), strict=True))

    def find(self, left: int, right: int) -> np.ndarray:
        """Returns the sorted positions where the pair (left, right) begins.

        Occurrences do not overlap: of the pair (a, a) in aaa, only the first occurrence is returned.
        """
        # Start from the positions of the rarer token.
        if len(self._positions[left]) <= len(self._positions[right]):
            starts = self._positions_of(left)
        else:
            starts = self.begins[self._positions_of(right) - 1]
            starts = starts[self.ids[starts] == left]
        length = self.lengths[left]
        starts = starts[self.ids[starts + length] == right]
        if left == right:
            # Keep the first, third, fifth, ... start of each run of starts that are one token length apart. For starts
            # 1 2 3 7 and length 1, `number` is 0 1 2 3, `run_first` is 0 0 0 3, and the starts 1 3 7 are kept.
            number = np.arange(len(starts))
            run_first = np.maximum.accumulate(np.where(np.diff(starts, prepend=-1) != length, number, 0))
            starts = starts[(number - run_first) % 2 == 0]
        return starts

    def before(self, starts: np.ndarray, left: int) -> np.ndarray:
        """Returns the positions of the tokens before the pairs that find() returned.

        In abab, the token before the second pair (a, b) is the right token of the first pair. Such a token is left out,
        since the caller counts the pairs that begin at left and right tokens anyway.
        """
        before = self.begins[starts - 1]
        return before[np.append(True, before[1:] != starts[:-1] + self.lengths[left])]

    def merge(self, starts: np.ndarray, left: int, right: int, merged: int) -> None:
        """Replaces the pair at each start by one token with the id `merged`."""
        self.ids[starts + self.lengths[left]] = -1
        self.ids[starts] = merged
        self.lengths[merged] = self.lengths[left] + self.lengths[right]
        self.begins[starts + self.lengths[merged] - 1] = starts
        self._positions[merged] = starts

    def _positions_of(self, token: int) -> np.ndarray:
        """Returns the sorted positions of a token. Positions where it was merged into a longer token are removed."""
        positions = self._positions[token]
        self._positions[token] = positions = positions[self.ids[positions] == token]
        return positions


def _ids(texts: Iterable[str], characters: Sequence[str], first: int, across_lines: bool) -> np.ndarray:
    """Maps texts to one array of ids, (N,) int32.

    The first of the sorted `characters` has the id `first`, the second the id first + 1, and so on. The array begins
    and ends with BORDER. Unless `across_lines`, BORDER also replaces each newline and follows each text.
    """
    alphabet, border = code_points("".join(characters)), np.full(1, BORDER, np.int32)
    parts = [border]
    for text in texts:
        points = code_points(text)
        ids = np.searchsorted(alphabet, points).astype(np.int32) + first
        parts += [ids] if across_lines else [np.where(points == ord("\n"), np.int32(BORDER), ids), border]
    return np.concatenate([*parts, border] if across_lines else parts)
