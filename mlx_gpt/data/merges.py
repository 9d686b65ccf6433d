"""Learning the merges of a byte-pair encoding from text, pair by pair, the most frequent one first."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mlx_gpt.data.tokenizer import code_points

Merge = tuple[str, str]
BORDER = 0  # an id that no token of a text has


def learn_merges(texts: Iterable[str], vocab: Sequence[str], first: int, vocab_size: int) -> list[Merge]:
    """The merges by which `vocab`, from `first` on sorted characters, grows to `vocab_size` strings.

    Every character of the texts is one of them. Pairs are counted within lines; of pairs as frequent the one of the
    lower ids is merged. A pair that spells a string which is there already is passed over, so no string stands twice.
    Fewer merges are given where a text has no more pairs.
    """
    vocab, known, merges = list(vocab), set(vocab), []
    cut = CutText(_ids(texts, vocab[first:], first), vocab_size)
    counts, heap = Counter(), []

    def count(places: np.ndarray, sign: int) -> None:
        for pair, number in cut.pairs(places):
            counts[pair] += sign * number
            if sign > 0:
                heapq.heappush(heap, (-counts[pair], pair))

    count(np.arange(len(cut.ids) - 1), 1)
    while len(vocab) < vocab_size and heap:
        number, pair = heapq.heappop(heap)
        left, right = pair
        if -number != counts[pair]:  # it has become rarer since
            if counts[pair]:
                heapq.heappush(heap, (-counts[pair], pair))
        elif (string := vocab[left] + vocab[right]) not in known:
            places = cut.find(left, right)
            before = cut.before(places, left)
            count(np.concatenate([before, places, places + cut.lengths[left]]), -1)
            cut.merge(places, left, right, len(vocab))
            count(np.concatenate([before, places]), 1)
            merges.append((vocab[left], vocab[right]))
            vocab.append(string)
            known.add(string)
    return merges


class CutText:
    """A text cut into tokens: which one begins at a character, and where the one that ends there began, (N,) each.

    So a token's neighbours are found from its place alone, and a merge writes three places.
    """

    def __init__(self, ids: np.ndarray, vocab_size: int):
        """`ids`: of the characters, int32, with a BORDER before, behind and between lines."""
        self.ids, self.begins = ids, np.arange(len(ids))
        self.lengths = np.ones(vocab_size, np.intp)  # in characters, of each id
        order = np.argsort(ids.astype(np.min_scalar_type(ids.max())), kind="stable")
        self._places = dict(enumerate(np.split(order, np.cumsum(np.bincount(ids))[:-1])))

    def pairs(self, places: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
        """The pairs that begin at these places, none of them over a border, and how often they do."""
        left = self.ids[places]
        right = self.ids[places + self.lengths[left]]
        inside = (left != BORDER) & (right != BORDER)
        size = len(self.lengths)
        codes, numbers = np.unique(left[inside].astype(np.int64) * size + right[inside], return_counts=True)
        return ((divmod(code, size), number) for code, number in zip(codes.tolist(), numbers.tolist(), strict=True))

    def find(self, left: int, right: int) -> np.ndarray:
        """Where a pair begins, in order; of those that overlap, as in aaa, the first."""
        if len(self._places[left]) <= len(self._places[right]):
            places = self._still(left)
        else:
            places = self.begins[self._still(right) - 1]
            places = places[self.ids[places] == left]
        length = self.lengths[left]
        places = places[self.ids[places + length] == right]
        if left == right:
            number = np.arange(len(places))
            begun = np.maximum.accumulate(np.where(np.diff(places, prepend=-1) != length, number, 0))
            places = places[(number - begun) % 2 == 0]
        return places

    def before(self, places: np.ndarray, left: int) -> np.ndarray:
        """Where the tokens before found pairs begin, but for those that are the end of such a pair."""
        before = self.begins[places - 1]
        return before[np.append(True, before[1:] != places[:-1] + self.lengths[left])]

    def merge(self, places: np.ndarray, left: int, right: int, merged: int) -> None:
        """Makes one token of the pair at each place."""
        self.ids[places + self.lengths[left]] = -1
        self.ids[places] = merged
        self.lengths[merged] = self.lengths[left] + self.lengths[right]
        self.begins[places + self.lengths[merged] - 1] = places
        self._places[merged] = places

    def _still(self, token: int) -> np.ndarray:
        """Where a token is, of the places where it has been."""
        places = self._places[token]
        self._places[token] = places = places[self.ids[places] == token]
        return places


def _ids(texts: Iterable[str], characters: Sequence[str], first: int) -> np.ndarray:
    """Each character's id, `first` for the first; a border in place of a newline, before all and behind each text."""
    alphabet, border = code_points("".join(characters)), np.full(1, BORDER, np.int32)
    parts = [border]
    for text in texts:
        points = code_points(text)
        ids = np.searchsorted(alphabet, points).astype(np.int32) + first
        parts += [np.where(points == ord("\n"), np.int32(BORDER), ids), border]
    return np.concatenate(parts)
