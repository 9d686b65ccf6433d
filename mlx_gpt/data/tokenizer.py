"""The interface of tokenizers, and randyGPT's tokenizer of characters.

The special token BOS (beginning of sequence) is the prompt of a text that has no other prompt. EOS (end of sequence)
ends each document. BOS has id 0 and EOS has id 1, except in vocabularies that are read from a file with other ids.
Models that fill in the middle need three further special tokens, FIM, which are the last ids of a vocabulary.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mlx_gpt.errors import BadFile, UserError

SPECIALS = ("<|bos|>", "<|eos|>")
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


class Tokenizer:
    """Base class of the tokenizers.

    Args:
        pieces: the UTF-8 bytes that each id stands for, V items. Special tokens have none, b"".

    Attributes:
        kind: how to_dict() and the setting data.tokenizer name this class: "char", "bpe" or "byte-bpe".
        bos_id: the id of BOS.
        eos_id: the id of EOS.
        fim_ids: the ids of FIM, in its order; None if the vocabulary does not have them.
        pieces: the argument.
    """

    kind: str
    bos_id, eos_id = 0, 1
    fim_ids: tuple[int, ...] | None = None

    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = pieces

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned integer type that can store every id."""
        return np.uint8 if self.vocab_size <= 1 << 8 else np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def token_bytes(self) -> np.ndarray:
        """Returns the number of UTF-8 bytes that each id stands for, (V,) int32."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids. Special tokens add no text. Bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        """Encodes a text.

        Args:
            text: the text. No part of it is encoded as a special token.
            unknown: a counter to which the characters that are not in the vocabulary are added. They are dropped from
                the text.

        Returns:
            The ids, (N,) `dtype`, without BOS and EOS.

        Raises:
            UserError: if a character is not in the vocabulary and `unknown` is None.
        """
        raise NotImplementedError

    def with_fim(self) -> "Tokenizer":
        """Returns a tokenizer that has the special tokens FIM too. They get the next ids; the others stay the same."""
        raise NotImplementedError

    def to_files(self) -> dict[str, str]:
        """Returns the files that `--vocab` can read, text by name. A tokenizer of characters has none."""
        return {}

    def to_dict(self) -> dict:
        """Returns a dict of JSON values from which vocabularies.tokenizer_from_dict restores the tokenizer."""
        raise NotImplementedError

    def digest(self) -> bytes:
        """Returns the SHA-256 of to_dict()."""
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).digest()


class CharTokenizer(Tokenizer):
    """A tokenizer with one id for each character (Unicode code point): ids 2, 3, ... in code-point order.

    >>> CharTokenizer("abc").encode("cab").tolist()
    [4, 2, 3]

    Args:
        characters: the distinct characters in code-point order.
        fim: whether the vocabulary has FIM.

    Raises:
        BadFile: if the characters are not sorted and distinct.
    """

    kind = "char"

    def __init__(self, characters: str, fim: bool = False):
        if list(characters) != sorted(set(characters)):
            raise BadFile("tokenizer: its characters are not sorted and distinct")
        pieces = [b""] * len(SPECIALS) + [c.encode() for c in characters]
        super().__init__(pieces + [b""] * len(FIM) if fim else pieces)
        self.characters = characters
        self.fim_ids = tuple(range(len(pieces), len(pieces) + len(FIM))) if fim else None
        self._points = code_points(characters)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        """Returns a tokenizer of all characters of the texts."""
        return cls("".join(sorted(alphabet(texts))))

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        points = code_points(text)
        # searchsorted returns where a code point would be inserted, up to len(self._points). The code point is known if
        # the alphabet has the same code point at this index.
        indices = np.searchsorted(self._points, points)
        known = indices < len(self._points)
        known[known] = self._points[indices[known]] == points[known]
        if not known.all():
            count_unknown((chr(p) for p in points[~known].tolist()), unknown)
            indices = indices[known]
        return (indices + len(SPECIALS)).astype(self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "characters": self.characters} | ({"fim": True} if self.fim_ids else {})

    def with_fim(self) -> "CharTokenizer":
        return CharTokenizer(self.characters, fim=True)


def character_specials(characters: str, names: Sequence[str] = SPECIALS) -> tuple[str, ...]:
    """Returns the names of special tokens in the tokenizer.json of a character tokenizer.

    Where a text contains the name of a special token, the `tokenizers` library encodes the name as that token. If
    `characters` can spell one of the names, all are therefore enclosed in a Unicode private-use character that is not
    in `characters`, so that no text can contain a name.
    """
    if not any(set(name) <= set(characters) for name in names):
        return tuple(names)
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in characters)
    return tuple(f"{mark}{name}{mark}" for name in names)


def fim_names(vocab: Sequence[str]) -> tuple[str, ...]:
    """Returns the last strings of a vocabulary if they are the names FIM, maybe enclosed in a character, else ()."""
    last = tuple(vocab[-len(FIM) :])
    return last if last == FIM or tuple(string[1:-1] for string in last) == FIM else ()


def alphabet(texts: Iterable[str]) -> set[str]:
    """Returns the set of all characters of the texts. Only one text at a time is in memory."""
    found: set[str] = set()
    for text in texts:
        found.update(text)
    return found


def count_unknown(characters: Iterable[str], unknown: Counter | None) -> None:
    """Adds characters that are not in the vocabulary to `unknown`. Raises UserError if `unknown` is None."""
    found = Counter(characters)
    if unknown is None:
        raise UserError(f"{name_unknown(found)} not in the vocabulary")
    unknown.update(found)


def name_unknown(unknown: Counter) -> str:
    """Names up to five unknown characters and their code points, followed by "is" or "are".

    >>> name_unknown(Counter("é"))
    "'é' (U+00E9) is"
    """
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in list(unknown)[:5])
    more = len(unknown) - 5
    return shown + (f" and {more} more are" if more > 0 else " are" if len(unknown) > 1 else " is")


def code_points(text: str) -> np.ndarray:
    """Returns the Unicode code points of a text, (N,) uint32. Lone surrogates are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
