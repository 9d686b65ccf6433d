"""Fill-in-the-middle: training windows in the order prefix, suffix, middle.

A window of the tokens P M S becomes

    <|fim_prefix|> P <|fim_suffix|> S <|fim_middle|> M EOS

so that a model learns to generate the middle M, and to end it, from what stands before and after it. The two borders
are drawn uniformly, between tokens. Source: Bavarian et al., "Efficient Training of Language Models to Fill in the
Middle", 2022, where this order is called PSM.
"""

from collections.abc import Sequence

import numpy as np

from mlx_gpt import rng
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import UserError

ADDED = 4  # tokens that are added to a window


class FillInTheMiddle:
    """Rearranges a share of the windows of each batch. The choices are a function of the seed and of the batch.

    Args:
        rate: the probability that a window is rearranged, 0 to 1.
        tokenizer: a tokenizer with the three special tokens.
        seed: the seed of the run.

    Raises:
        UserError: if the tokenizer does not have them.
    """

    def __init__(self, rate: float, tokenizer: Tokenizer, seed: int):
        require_fim(tokenizer, f"data.fim_rate={rate:g}")
        self._rate, self._ids, self._eos_id, self._seed = rate, tokenizer.fim_ids, tokenizer.eos_id, seed

    def __call__(
        self, index: int, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rearranges windows. If a window would get longer than T + 1, its last tokens are left out.

        Args:
            index: the number of the batch.
            ids: the ids of the windows, (B, T + 1) int32.
            starts: the position of the first token of each window, (B,) int32.
            ends: the position of the end (exclusive) of its document, (B,) int32.

        Returns:
            The arguments with new ids. The end of a rearranged window is that of its last token.
        """
        ids, ends, (rows, width) = ids.copy(), ends.copy(), ids.shape
        draws = rng.host_bits(self._seed, rng.FIM, index, 3 * rows).reshape(rows, 3).astype(np.uint64)
        for row in np.flatnonzero(draws[:, 0] < self._rate * 2**32).tolist():
            length = int(ends[row] - starts[row])
            whole = ids[row, : min(length, width)]
            if length <= width and whole[-1:] == self._eos_id:
                whole = whole[:-1]  # the EOS of the document is not part of its text
            text = whole[: width - ADDED]
            first, second = sorted((draws[row, 1:] * np.uint64(len(text) + 1) >> np.uint64(32)).tolist())
            made = rearranged(text[:first], text[first:second], text[second:], self._ids, self._eos_id)
            ids[row] = np.pad(made, (0, width - len(made)), constant_values=self._eos_id)
            ends[row] = starts[row] + len(made)
        return ids, starts, ends


def rearranged(
    prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int], specials: Sequence[int], eos_id: int
) -> np.ndarray:
    """Returns the ids of a window in the order of the module's docstring, (N + ADDED,) int32."""
    ids = [*prompt_ids(prefix, suffix, specials), *middle, eos_id]
    return np.array(ids, np.int32)


def prompt_ids(prefix: Sequence[int], suffix: Sequence[int], specials: Sequence[int]) -> list[int]:
    """Returns the ids after which a model generates the middle."""
    before, after, between = specials
    return [before, *prefix, after, *suffix, between]


def require_fim(tokenizer: Tokenizer, what: str) -> None:
    """Raises UserError, which names `what`, if a tokenizer has no special tokens for fill-in-the-middle."""
    if tokenizer.fim_ids is None:
        raise UserError(
            f"{what}: the tokenizer has no special tokens for fill-in-the-middle; use a model that was trained with "
            "them, or train a new one with --set data.fim_rate=0.5"
        )
