"""Synthetic text of known entropy: a Markov chain of letters, generated from a fixed seed.

The corpus `markov:ORDER` has 1 million letters of an alphabet of 12. The distribution of each letter depends on the
ORDER letters before it, its context. The entropy rate of the chain is the lowest expected loss of any model.
Training works if the validation loss approaches it.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlx_gpt.errors import UserError

LETTERS = "abcdefghijkl"
MAX_ORDER = 4
# Each row of probabilities is drawn from a Dirichlet distribution with this parameter. Since it is below 1, a few
# letters are likely after each context and the others are rare.
CONCENTRATION = 0.3
SEED = 1906  # the year of Markov's paper


@dataclass(frozen=True)
class Chain:
    """A Markov chain over A = 12 letters.

    Attributes:
        order: the number of preceding letters that the distribution of the next letter depends on.
        length: the number of letters of the generated text.
    """

    order: int
    length: int = 1_000_000

    @classmethod
    def parse(cls, name: str) -> "Chain":
        """Returns the chain of a corpus name such as `markov:2`. Raises UserError for an invalid order."""
        tail = name.partition(":")[2]
        if not tail.isdigit() or not 0 <= int(tail) <= MAX_ORDER:
            raise UserError(f"corpus {name}: give an order from 0 to {MAX_ORDER}, as in markov:2")
        return cls(int(tail))

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of each letter after each context, (A^order, A) float64. Each row sums to 1."""
        A = len(LETTERS)
        return np.random.default_rng([SEED, self.order]).dirichlet([CONCENTRATION] * A, A**self.order)

    def entropy_rate(self) -> float:
        """Returns the entropy rate in nats per letter.

        It is sum_c pi(c) H(c). H(c) is the entropy of row c of `probabilities`. pi is the stationary distribution of
        the contexts, which is found by power iteration.
        """
        p = self.probabilities
        # A probability of 0 contributes nothing: its logarithm is replaced by log(1) = 0.
        rows = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
        A, contexts = len(LETTERS), np.full(len(p), 1 / len(p))
        for _ in range(10_000):
            # The next context drops the oldest letter, the first axis after the reshape, and appends the new one. With
            # order 0 there is only the empty context.
            after = (contexts[:, None] * p).reshape(A, -1, A).sum(axis=0).reshape(-1) if self.order else contexts
            if np.abs(after - contexts).max() < 1e-15:
                break
            contexts = after
        return float(contexts @ rows)

    def note(self) -> str:
        """Returns a message for the user that gives the entropy rate."""
        rate = self.entropy_rate()
        return (
            f"markov:{self.order}: its entropy rate is {rate:.4f} nats per letter ({rate / math.log(2):.4f} bits); "
            "no model can have a lower expected loss"
        )

    @property
    def num_bytes(self) -> int:
        """The size of the text in bytes."""
        return self.length

    def texts(self) -> list[Iterator[str]]:
        """Returns the only text of the corpus, see `pieces`."""
        return [self.pieces()]

    def pieces(self) -> Iterator[str]:
        """Yields the whole text as one string without line breaks."""
        cumulative, A = np.cumsum(self.probabilities, axis=1), len(LETTERS)
        draws = np.random.default_rng([SEED, self.order, 1]).random(self.length)
        rows, size = [row.tolist() for row in cumulative], A**self.order
        # A context is represented by a number in base A, whose last digit is the newest letter. The first letter is
        # drawn as if it followed a context of a's.
        context, letters = 0, []
        for draw in draws.tolist():
            # min: rounding can leave the last cumulative sum below 1, and the draw can lie between the two.
            letter = min(bisect_right(rows[context], draw), A - 1)
            letters.append(LETTERS[letter])
            context = (context * A + letter) % size
        yield "".join(letters)
