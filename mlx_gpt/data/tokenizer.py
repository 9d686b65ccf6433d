"""Characters as tokens, as in randyGPT: id 0 is BOS, 1 is EOS, then the sorted distinct code points of the text."""

from collections.abc import Iterable

import numpy as np

from mlx_gpt.errors import BadFile, UserError

BOS_ID, EOS_ID = 0, 1
SPECIALS = ("<|bos|>", "<|eos|>")


class CharTokenizer:
    """Text to ids and back, one id a character."""

    bos_id, eos_id = BOS_ID, EOS_ID

    def __init__(self, characters: str):
        """`characters`: the distinct characters in code-point order."""
        if list(characters) != sorted(set(characters)):
            raise BadFile("tokenizer: its characters are not sorted and distinct")
        self.characters = characters
        self._points = _code_points(characters)

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> "CharTokenizer":
        return cls("".join(sorted(set().union(*documents))))

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, in the smallest unsigned type. Raises UserError naming unknown characters."""
        points = _code_points(text)
        places = np.searchsorted(self._points, points)
        known = places < len(self._points)
        known[known] = self._points[places[known]] == points[known]
        if not known.all():
            raise UserError(f"{_named(points[~known])} not in the vocabulary of {len(self.characters)} characters")
        return (places + len(SPECIALS)).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """Concatenated characters; BOS and EOS are skipped."""
        first = len(SPECIALS)
        return "".join(self.characters[i - first] for i in ids if i >= first)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds every id."""
        return np.uint8 if self.vocab_size <= 1 << 8 else np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def token_bytes(self) -> np.ndarray:
        """UTF-8 length of each id, (V,) int32; specials have none."""
        return np.array([0] * len(SPECIALS) + [len(c.encode()) for c in self.characters], np.int32)

    def to_dict(self) -> dict:
        return {"kind": "char", "characters": self.characters}

    @classmethod
    def from_dict(cls, data: dict) -> "CharTokenizer":
        if data.get("kind") != "char" or not isinstance(data.get("characters"), str):
            raise BadFile(f"tokenizer of kind {data.get('kind')!r}; this version reads 'char'")
        return cls(data["characters"])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _named(points: np.ndarray) -> str:
    """The first few unknown characters, so that a user can find them."""
    distinct = [chr(p) for p in dict.fromkeys(points.tolist())]
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in distinct[:5])
    more = f" and {len(distinct) - 5} more are" if len(distinct) > 5 else " are" if len(distinct) > 1 else " is"
    return shown + more
