"""Text to ids and back: what all tokenizers share, and characters as tokens, as in randyGPT.

Id 0 is BOS and 1 is EOS, unless a vocabulary of another origin says otherwise.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mlx_gpt.errors import BadFile, UserError

SPECIALS = ("<|bos|>", "<|eos|>")


class Tokenizer:
    """A vocabulary: `pieces` are the UTF-8 bytes that each id stands for, none for the specials."""

    kind: str
    bos_id, eos_id = 0, 1

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = pieces

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds every id."""
        return np.uint8 if self.vocab_size <= 1 << 8 else np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def token_bytes(self) -> np.ndarray:
        """UTF-8 length of each id, (V,) int32."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """What the ids stand for, one after the other; a character that is not whole becomes U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        """Ids of the text, in the smallest unsigned type.

        Characters that the vocabulary lacks are left out and counted in `unknown`; without it they raise UserError.
        """
        raise NotImplementedError

    def to_dict(self) -> dict:
        """All of it, as JSON can hold it, under "kind" and more."""
        raise NotImplementedError


class CharTokenizer(Tokenizer):
    """The sorted distinct code points of a text, one id each."""

    kind = "char"

    def __init__(self, characters: str):
        """`characters`: the distinct characters in code-point order."""
        if list(characters) != sorted(set(characters)):
            raise BadFile("tokenizer: its characters are not sorted and distinct")
        super().__init__([b""] * len(SPECIALS) + [c.encode() for c in characters])
        self.characters = characters
        self._points = code_points(characters)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        return cls("".join(sorted(alphabet(texts))))

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        points = code_points(text)
        places = np.searchsorted(self._points, points)
        known = places < len(self._points)
        known[known] = self._points[places[known]] == points[known]
        if not known.all():
            count_unknown((chr(p) for p in points[~known].tolist()), unknown)
            places = places[known]
        return (places + len(SPECIALS)).astype(self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "characters": self.characters}


def alphabet(texts: Iterable[str]) -> set[str]:
    """The characters of all texts, one text in memory at a time."""
    found: set[str] = set()
    for text in texts:
        found.update(text)
    return found


def count_unknown(characters: Iterable[str], unknown: Counter | None) -> None:
    """Counts unknown characters, or refuses them where nobody counts."""
    found = Counter(characters)
    if unknown is None:
        raise UserError(f"{name_unknown(found)} not in the vocabulary")
    unknown.update(found)


def name_unknown(unknown: Counter) -> str:
    """The first few unknown characters, so that a user can find them, and "is" or "are"."""
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in list(unknown)[:5])
    more = len(unknown) - 5
    return shown + (f" and {more} more are" if more > 0 else " are" if len(unknown) > 1 else " is")


def code_points(text: str) -> np.ndarray:
    """Unicode code points, (N,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
