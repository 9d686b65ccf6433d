"""A character n-gram model, the baseline that a neural network has to beat.

The next character is drawn from those that follow the last n - 1 characters in the training text, in proportion to how
often they do. If these characters do not occur there, the model takes the last n - 2, and so on (backing off).

The model is a sorted array of the n-grams of the text, each a number, with their counts. The digits of a number, from
the most significant one, are the characters before a position, the nearest first, and then the character at the
position. The n-grams after a given context of any length are therefore a range of the array.
"""

import numpy as np

MAX_CHARACTERS = 4 << 20  # of the training text; sorting takes 8 bytes for each, twice
DIGIT = 12  # bits of a character: n = 5 fit into 60 bits
ORDER = 5


class NGram:
    """A character n-gram model with n = 5.

    Args:
        text: The training text, at least one character. Only its first MAX_CHARACTERS are read. Of its different
            characters, the 2^12 - 1 that have the lowest code points are known; the others are left out.
    """

    def __init__(self, text: str):
        points = np.frombuffer(text[:MAX_CHARACTERS].encode("utf-32-le", "replace"), np.uint32)
        known = np.unique(points)[: (1 << DIGIT) - 1]
        self._characters = "".join(map(chr, known.tolist()))
        digits = np.searchsorted(known, points[points <= known[-1]]).astype(np.int64) + 1  # 0 is before the text
        keys = digits.copy()
        for distance in range(1, ORDER):
            before = np.concatenate([np.zeros(min(distance, len(digits)), np.int64), digits[:-distance]])
            keys += before << (DIGIT * (ORDER - distance))
        self._keys, self._counts = np.unique(keys, return_counts=True)
        self._found: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}  # results of _followers()
        self._digits = {character: i for i, character in enumerate(self._characters, 1)}

    def generate(self, prompt: str, length: int, temperature: float, top_k: int, seed: int) -> str:
        """Generates the text that follows a prompt.

        Args:
            prompt: The text before it. Characters that the training text does not have are skipped.
            length: Number of characters.
            temperature: The logarithms of the probabilities are divided by this; 0 takes the most likely character.
            top_k: Draw from the k most likely characters; 0 keeps all.
            seed: Seed of the draws.
        """
        context = tuple(self._digits[c] for c in prompt if c in self._digits)[1 - ORDER :]
        found = []
        for draw in np.random.default_rng(seed).random(length).tolist():
            digits, counts = self._followers(context)
            order = np.argsort(-counts, kind="stable")[: 1 if temperature == 0 else top_k or None]
            cumulative = np.cumsum(np.exp(np.log(counts[order] / counts.max()) / (temperature or 1.0)))
            place = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
            digit = int(digits[order[min(place, len(order) - 1)]])
            context = (*context, digit)[1 - ORDER :]
            found.append(self._characters[digit - 1])
        return "".join(found)

    def _followers(self, context: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the characters that follow the context, as digits, and how often they do.

        The context is shortened from its beginning until the training text has it.
        """
        if context in self._found:
            return self._found[context]
        first = sum(digit << (DIGIT * (ORDER - i)) for i, digit in enumerate(reversed(context), 1))
        begin, end = np.searchsorted(self._keys, [first, first + (1 << DIGIT * (ORDER - len(context)))])
        if begin < end:
            last = self._keys[begin:end] & ((1 << DIGIT) - 1)
            counts = np.bincount(last, self._counts[begin:end])
            self._found[context] = np.flatnonzero(counts), counts[counts > 0]
        else:
            self._found[context] = self._followers(context[1:])
        return self._found[context]
