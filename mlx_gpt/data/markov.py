"""Text of known entropy: a Markov chain of letters, drawn from a seed. What can be learned from it is known exactly.

`markov:ORDER` is 1 million letters of 12 kinds, the next one drawn by the ORDER letters before it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlx_gpt.errors import UserError

LETTERS = "abcdefghijkl"
MAX_ORDER = 4
CONCENTRATION = 0.3  # of the Dirichlet that each row is drawn from: a few letters are likely after each context
SEED = 1906  # the year of Markov's paper


@dataclass(frozen=True)
class Chain:
    """A chain of an order: probabilities (A^order, A) of the next of A letters."""

    order: int
    length: int = 1_000_000

    @classmethod
    def parse(cls, name: str) -> "Chain":
        """From `markov:2`."""
        tail = name.partition(":")[2]
        if not tail.isdigit() or not 0 <= int(tail) <= MAX_ORDER:
            raise UserError(f"corpus {name}: an order from 0 to {MAX_ORDER} follows, as markov:2")
        return cls(int(tail))

    @property
    def probabilities(self) -> np.ndarray:
        A = len(LETTERS)
        return np.random.default_rng([SEED, self.order]).dirichlet([CONCENTRATION] * A, A**self.order)

    def entropy_rate(self) -> float:
        """Nats a letter: the entropy of each row, weighted by how often its context comes in the long run."""
        p = self.probabilities
        rows = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
        A, contexts = len(LETTERS), np.full(len(p), 1 / len(p))
        for _ in range(10_000):
            # A context forgets its oldest letter and takes in the next one.
            after = (contexts[:, None] * p).reshape(A, -1, A).sum(axis=0).reshape(-1) if self.order else contexts
            if np.abs(after - contexts).max() < 1e-15:
                break
            contexts = after
        return float(contexts @ rows)

    def note(self) -> str:
        rate = self.entropy_rate()
        return (
            f"markov:{self.order}: its entropy rate is {rate:.4f} nats a letter ({rate / math.log(2):.4f} bits); "
            "no model can do better"
        )

    def pieces(self) -> Iterator[str]:
        """The text, in lines of no meaning: none."""
        cumulative, A = np.cumsum(self.probabilities, axis=1), len(LETTERS)
        draws = np.random.default_rng([SEED, self.order, 1]).random(self.length)
        rows, size = [row.tolist() for row in cumulative], A**self.order
        context, letters = 0, []
        from bisect import bisect_right

        for draw in draws.tolist():
            letter = min(bisect_right(rows[context], draw), A - 1)
            letters.append(LETTERS[letter])
            context = (context * A + letter) % size
        yield "".join(letters)
