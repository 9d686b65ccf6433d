"""Training of a byte-pair encoding: learns the merges from text, the most frequent pair first.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909, algorithm 1.
Pairs are counted incrementally: a merge changes only the counts of the pairs next to it.

Example: the text is two lines, "abab" and "abc", and a, b, c have the ids 2, 3, 4. Three merges are requested.

| tokens          | counts                    | merge            |
| --------------- | ------------------------- | ---------------- |
| a b a b / a b c | (a,b) 3, (b,a) 1, (b,c) 1 | (a, b) -> id 5   |
| ab ab / ab c    | (ab,c) 1, (ab,ab) 1       | (ab, c) -> id 6  |
| ab ab / abc     | (ab,ab) 1                 | (ab, ab) -> id 7 |

In the second row both pairs occur once, and the ids (5, 4) of (ab, c) are lower than the ids (5, 5) of (ab, ab).
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mlx_gpt.data.tokenizer import code_points

Merge = tuple[str, str]
BORDER = 0  # separates lines and texts; the id of BOS, which no text contains


def learn_merges(texts: Iterable[str], vocab: Sequence[str], first: int, vocab_size: int) -> list[Merge]:
    """Learns merges until the vocabulary has `vocab_size` strings or the text has no more pairs.

    Repeatedly, the most frequent pair of adjacent tokens becomes one token with the next free id. Pairs are counted
    within lines. Of equally frequent pairs the one with the lower ids is merged. A pair that spells a string of the
    vocabulary is skipped, so no string occurs twice: (a, bc) and (ab, c) cannot both be merged.

    The example of the module docstring:

    >>> learn_merges(["abab\\nabc"], ["<|bos|>", "<|eos|>", "a", "b", "c"], first=2, vocab_size=8)
    [('a', 'b'), ('ab', 'c'), ('ab', 'ab')]

    Args:
        texts: the texts; no pair is counted across two of them.
        vocab: the initial vocabulary; from id `first` on its sorted characters, which include all of the texts.
        first: the id of the first character.
        vocab_size: the size to reach.

    Returns:
        The merges in order, at most vocab_size - len(vocab) of them.
    """
    vocab, known, merges = list(vocab), set(vocab), []
    tokens = TokenizedText(_ids(texts, vocab[first:], first), vocab_size)
    counts, heap = Counter(), []

    def count(starts: np.ndarray, sign: int) -> None:
        """Adds `sign` to the counts of the pairs that begin at `starts`."""
        for pair, number in tokens.pairs(starts):
            counts[pair] += sign * number
            if sign > 0:
                heapq.heappush(heap, (-counts[pair], pair))

    count(np.arange(len(tokens.ids) - 1), 1)
    while len(vocab) < vocab_size and heap:
        # The heap may have outdated entries, since counts fall without a push. An entry that is popped with another
        # count than the current one is pushed again with the current count.
        number, pair = heapq.heappop(heap)
        left, right = pair
        if -number != counts[pair]:
            if counts[pair]:
                heapq.heappush(heap, (-counts[pair], pair))
        elif (string := vocab[left] + vocab[right]) not in known:
            # x left right y becomes x merged y: the pairs that begin at x, left and right go, and those that begin at
            # x and merged come. They are counted before and after the merge, for they are read from the tokens.
            starts = tokens.find(left, right)
            before = tokens.before(starts, left)
            count(np.concatenate([before, starts, starts + tokens.lengths[left]]), -1)
            tokens.merge(starts, left, right, len(vocab))
            count(np.concatenate([before, starts]), 1)
            merges.append((vocab[left], vocab[right]))
            vocab.append(string)
            known.add(string)
    return merges


class TokenizedText:
    """A text of N characters, split into tokens, in arrays that make a merge cheap.

    ids: (N,) int32. The id of a token at its first character, -1 at its other characters.
    begins: (N,). At the last character of a token, the position of its first character.
    lengths: (V,). The number of characters of each id.

    The token after the one at position i begins at i + lengths[ids[i]]; the token before it begins at begins[i - 1].
    Neighbors are thus found without a search, and a merge writes three elements. The text "abab" between two borders,
    before and after the merge of (a, b), with the ids 2, 3 and 5:

    >>> text = TokenizedText(np.array([0, 2, 3, 2, 3, 0], np.int32), vocab_size=8)
    >>> starts = text.find(2, 3)
    >>> starts.tolist()
    [1, 3]
    >>> text.merge(starts, 2, 3, merged=5)
    >>> text.ids.tolist(), text.begins[[0, 2, 4, 5]].tolist()
    ([0, 5, -1, 5, -1, 0], [0, 1, 3, 5])

    Args:
        ids: (N,) int32, one id for each character, with BORDER at both ends and between lines.
        vocab_size: V, the number of ids after all merges.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int):
        self.ids, self.begins = ids, np.arange(len(ids))
        self.lengths = np.ones(vocab_size, np.intp)
        # The positions of each id, sorted. Merges leave outdated positions, which _positions_of removes.
        order = np.argsort(ids.astype(np.min_scalar_type(ids.max())), kind="stable")
        self._positions = dict(enumerate(np.split(order, np.cumsum(np.bincount(ids))[:-1])))

    def pairs(self, starts: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
        """Yields the pairs (left id, right id) that begin at these tokens, and their counts; none has a border."""
        left = self.ids[starts]
        right = self.ids[starts + self.lengths[left]]
        inside = (left != BORDER) & (right != BORDER)
        size = len(self.lengths)
        codes, numbers = np.unique(left[inside].astype(np.int64) * size + right[inside], return_counts=True)
        return ((divmod(code, size), number) for code, number in zip(codes.tolist(), numbers.tolist(), strict=True))

    def find(self, left: int, right: int) -> np.ndarray:
        """Returns the sorted positions where a pair begins. Of overlapping pairs, as in aaa, the first is returned."""
        # Look at the rarer token of the two.
        if len(self._positions[left]) <= len(self._positions[right]):
            starts = self._positions_of(left)
        else:
            starts = self.begins[self._positions_of(right) - 1]
            starts = starts[self.ids[starts] == left]
        length = self.lengths[left]
        starts = starts[self.ids[starts + length] == right]
        if left == right:
            # Runs such as aaaa give consecutive starts, one length apart. Of each run every second one is taken.
            number = np.arange(len(starts))
            run_first = np.maximum.accumulate(np.where(np.diff(starts, prepend=-1) != length, number, 0))
            starts = starts[(number - run_first) % 2 == 0]
        return starts

    def before(self, starts: np.ndarray, left: int) -> np.ndarray:
        """Returns where the tokens before the found pairs begin.

        Where one found pair follows another, as in abab, the token before it is the right token of the other pair. It
        is omitted, since the caller counts that token already.
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
        """Returns the sorted positions of a token, after removing those where it was merged into another one."""
        positions = self._positions[token]
        self._positions[token] = positions = positions[self.ids[positions] == token]
        return positions


def _ids(texts: Iterable[str], characters: Sequence[str], first: int) -> np.ndarray:
    """Maps texts to one array of ids, (N,) int32.

    The first of the sorted `characters` has the id `first`. BORDER replaces each newline, and is added before the first
    text and after each text.
    """
    alphabet, border = code_points("".join(characters)), np.full(1, BORDER, np.int32)
    parts = [border]
    for text in texts:
        points = code_points(text)
        ids = np.searchsorted(alphabet, points).astype(np.int32) + first
        parts += [np.where(points == ord("\n"), np.int32(BORDER), ids), border]
    return np.concatenate(parts)
