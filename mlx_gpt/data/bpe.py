"""Byte-pair encodings: randyGPT's, of characters, and GPT-2's, of bytes.

Text is encoded by the `tokenizers` library wherever it gives the ids of randyGPT's rule, and otherwise in Python.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mlx_gpt.data.merges import Merge, learn_merges
from mlx_gpt.data.tokenizer import SPECIALS, CharTokenizer, Tokenizer, count_unknown
from mlx_gpt.errors import BadFile, UserError

CHUNK = 1 << 16  # minimum characters of a chunk, which one thread of the library encodes
BATCH = 64  # chunks of one call of the library
# A text can be cut here without changing its tokens: before a newline, or, for bytes, between a word and a space.
LINE_END, WORD_END = re.compile(r"(?=\n)"), re.compile(r"(?<=\S)(?=\s)")


class BPETokenizer(Tokenizer):
    """randyGPT's byte-pair encoding of characters.

    Each line is encoded separately, and a newline is a separate token. A line starts as one token per character. Of
    all adjacent pairs that can be merged, those with the lowest merged id are merged, from left to right. This repeats
    until no pair can be merged. With the ids a = 2, b = 3, ab = 4 and aba = 5:

    >>> tokenizer = BPETokenizer(["<|bos|>", "<|eos|>", "a", "b", "ab", "aba"], [("a", "b"), ("ab", "a")])
    >>> tokenizer.encode("ababa").tolist()  # a b a b a, then ab ab a, then ab aba
    [4, 5]

    A string that occurs twice in the vocabulary is encoded as the last of its ids. Merges whose parts or result are not
    in the vocabulary have no effect. Of two merges of the same pair the first counts.

    Args:
        vocab: the string of each id, V items: two special tokens, then characters and merged strings.
        merges: the pairs of strings that are merged.
    """

    kind = "bpe"

    def __init__(self, vocab: Sequence[str], merges: Sequence[Merge]):
        super().__init__([b""] * len(SPECIALS) + [s.encode() for s in vocab[len(SPECIALS) :]])
        self.vocab, self.merges = list(vocab), list(merges)
        self.special_names = tuple(vocab[: len(SPECIALS)])
        self._ids = {s: i for i, s in enumerate(vocab)}
        self._characters = {s for s in self._ids if len(s) == 1}
        known = [(a, b) for a, b in merges if {a, b, a + b} <= self._ids.keys()]
        # Maps a pair of ids to the merged id; reversed, so that the first of equal pairs is the one that remains.
        self._merged = {(self._ids[a], self._ids[b]): self._ids[a + b] for a, b in reversed(known)}
        self._engine = _engine(self._ids, self._merges_by_id()) if self._library_agrees() else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, characters: set[str]) -> "BPETokenizer":
        """Trains a vocabulary with learn_merges.

        Args:
            texts: the texts.
            vocab_size: the number of ids: special tokens, characters and merged strings.
            characters: all characters of the vocabulary, which include those of `texts`.

        Raises:
            UserError: if special tokens and characters leave no id for a merge.
        """
        vocab = [*SPECIALS, *sorted(characters)]
        if vocab_size <= len(vocab):
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the text has {len(characters)} characters, which with two "
                f"special tokens take {len(vocab)} ids before the first merge; choose a larger size"
            )
        merges = learn_merges(texts, vocab, len(SPECIALS), vocab_size)
        return cls([*vocab, *(left + right for left, right in merges)], merges)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """Reads a tokenizer.json that to_json() wrote."""
        model = json.loads(text)["model"]
        ids = model["vocab"]
        vocab = [""] * (max(ids.values()) + 1)
        for string, i in ids.items():
            vocab[i] = string
        return cls(vocab, [tuple(merge) for merge in model["merges"]])

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        missing = set(text) - self._characters
        if missing:
            count_unknown((c for c in text if c in missing), unknown)
            # A newline that is not in the vocabulary has no id but still ends a line, so it stays in the text.
            text = text.translate({ord(c): None for c in missing - {"\n"}})
        if self._engine:
            return _encode(self._engine, _chunks(text, LINE_END), self.dtype)
        pieces = (piece for piece in re.split(r"(\n)", text) if piece)
        return np.array([i for piece in pieces for i in self._encode_line(piece)], self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "vocab": self.vocab, "merges": [list(merge) for merge in self.merges]}

    def to_vocab_json(self) -> str:
        """Returns the text of a vocab.json, as randyGPT writes it."""
        return json.dumps({"vocab": self.vocab, "merges": self.merges}, indent=2, ensure_ascii=False)

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json, with the special tokens.

        Raises UserError if the library would not give the same ids for this vocabulary.
        """
        if not self._has_json():
            raise UserError(
                "a tokenizer.json cannot represent this vocabulary: a string occurs twice, or its merges are not in "
                "the order of their ids; save it as vocab.json"
            )
        return _with_specials(self._ids, self._merges_by_id(), self.special_names)

    @property
    def file_name(self) -> str:
        """The name of the file that to_file() returns: tokenizer.json if possible, else vocab.json."""
        return "tokenizer.json" if self._has_json() else "vocab.json"

    def to_file(self) -> str:
        """Returns the text of the file `file_name`."""
        return self.to_json() if self._has_json() else self.to_vocab_json()

    def _has_json(self) -> bool:
        """Whether a tokenizer.json can represent this vocabulary: the library agrees, and no string occurs twice."""
        return self._engine is not None and len(self._ids) == len(self.vocab)

    def _library_agrees(self) -> bool:
        """Whether the library gives the ids of the class docstring's rule.

        The library merges one pair at a time: that of the lowest rank, and of these the leftmost. The rule merges all
        pairs of one id before it looks again. They agree if each id is merged from one pair only and from lower ids:
        then a merge creates no pair that would have to be merged before the remaining pairs of the same id.
        """
        merged = list(self._merged.values())
        return len(set(merged)) == len(merged) and all(max(pair) < m for pair, m in self._merged.items())

    def _merges_by_id(self) -> list[Merge]:
        """Returns the merges that have an effect, sorted by merged id."""
        pairs = sorted(self._merged.items(), key=lambda item: item[1])
        return [(self.vocab[a], self.vocab[b]) for (a, b), _ in pairs]

    def _encode_line(self, line: str) -> list[int]:
        """Encodes a line by the rule, for vocabularies for which the library gives other ids."""
        ids = [self._ids[c] for c in line if c in self._ids]
        while found := [self._merged[pair] for pair in zip(ids, ids[1:], strict=False) if pair in self._merged]:
            best, merged, i = min(found), [], 0
            while i < len(ids):
                is_best = self._merged.get(tuple(ids[i : i + 2])) == best
                merged.append(best if is_best else ids[i])
                i += 2 if is_best else 1
            ids = merged
        return ids


class ByteBPETokenizer(Tokenizer):
    """GPT-2's byte-level byte-pair encoding: merges bytes within words, so no character is unknown.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2.

    Args:
        text: the text of a tokenizer.json: a byte-level BPE with an end-of-text token, without a normalizer.

    Raises:
        BadFile: if it is not such a file.
    """

    kind = "byte-bpe"

    def __init__(self, text: str):
        self._json = text
        engine = _parse(text)
        facts = json.loads(text)
        kinds = {part.get("type") for part in _parts(facts.get("pre_tokenizer"))}
        if facts["model"].get("type") != "BPE" or "ByteLevel" not in kinds or facts.get("normalizer"):
            raise BadFile("tokenizer.json: not supported; give a byte-level BPE without a normalizer, as GPT-2's")
        ids = engine.get_vocab(with_added_tokens=True)
        specials = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
        ends = [name for name in ("<|eos|>", "<|endoftext|>", "</s>") if name in ids]
        if not ends:
            raise BadFile("tokenizer.json: has no end-of-text token; add <|eos|>, <|endoftext|> or </s>")
        pieces = [b""] * (max(ids.values()) + 1)
        for string, i in ids.items():
            pieces[i] = b"" if string in specials else bytes(BYTES[c] for c in string)
        super().__init__(pieces)
        begins = [name for name in ("<|bos|>", "<s>") if name in ids]
        self.special_names = ([*begins, ends[0]][0], ends[0])
        self.bos_id, self.eos_id = (ids[name] for name in self.special_names)
        engine.encode_special_tokens = True  # "<|eos|>" in a text is encoded as its characters, not as EOS
        self._engine = engine

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, characters: set[str]) -> "ByteBPETokenizer":
        """Trains a vocabulary of byte pairs within words with the library.

        Args:
            texts: the texts.
            vocab_size: the number of ids: special tokens, 256 bytes and merged strings.
            characters: not used; it makes the signature that of BPETokenizer.train.

        Raises:
            UserError: if special tokens and bytes leave no id for a merge.
        """
        smallest = len(SPECIALS) + len(BYTES)
        if vocab_size <= smallest:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the bytes and special tokens take {smallest} ids; "
                "choose a larger size"
            )
        engine = tokenizers.Tokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        chunks = (chunk for text in texts for chunk in _chunks(text, WORD_END))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=sorted(BYTES), show_progress=False
        )
        engine.train_from_iterator(chunks, trainer)
        return cls(engine.to_str())

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        # Lone surrogates, which Python makes of a terminal's invalid bytes, have no UTF-8 form and become "?".
        text = text.encode("utf-8", "replace").decode()
        return _encode(self._engine, _chunks(text, WORD_END), self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "json": self._json}

    def to_json(self) -> str:
        return self._json

    file_name, to_file = "tokenizer.json", to_json


def tokenizer_from_dict(data: dict) -> Tokenizer:
    """Restores a tokenizer from the dict that its to_dict() returned. Raises BadFile if the dict is invalid."""
    try:
        match data["kind"]:
            case CharTokenizer.kind:
                return CharTokenizer(data["characters"])
            case BPETokenizer.kind:
                return BPETokenizer(data["vocab"], [tuple(merge) for merge in data["merges"]])
            case ByteBPETokenizer.kind:
                return ByteBPETokenizer(data["json"])
            case kind:
                raise BadFile(f"tokenizer of unknown kind {kind!r}; this version reads 'char', 'bpe' and 'byte-bpe'")
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"tokenizer: not written by mlxgpt, or corrupt: {type(error).__name__} {error}") from None


def character_json(characters: str) -> str:
    """Returns the text of a tokenizer.json for a character tokenizer: a BPE without merges."""
    specials = character_specials(characters)
    return _with_specials({s: i for i, s in enumerate([*specials, *characters])}, [], specials)


def character_specials(characters: str) -> tuple[str, ...]:
    """Returns the names of the special tokens in the tokenizer.json of a character tokenizer.

    The library encodes a special token's name in a text as that token. If the alphabet has all characters of a name, a
    private-use character is therefore added on both sides, which no text of the alphabet contains.
    """
    if not any(set(name) <= set(characters) for name in SPECIALS):
        return SPECIALS
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in characters)
    return tuple(f"{mark}{name}{mark}" for name in SPECIALS)


def open_vocab(path: Path) -> Tokenizer:
    """Reads a vocabulary.

    Args:
        path: a vocab.json of randyGPT, a tokenizer.json of mlxgpt or of any byte-level BPE, or a folder that contains
            a tokenizer.json.

    Raises:
        UserError: if there is no such file.
        BadFile: if the file is none of these.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = path.read_text("utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a vocab.json or a tokenizer.json") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: not a readable JSON file: {error}") from None
    try:
        if isinstance(data, dict) and {"vocab", "merges"} <= data.keys():
            return _from_vocab_json(data)
        if isinstance(data, dict) and isinstance(data.get("model"), dict):
            # A BPE of characters, as _engine makes it, has one pre-tokenization step, of type Split.
            is_bpe = data["model"].get("type") == "BPE"
            if not is_bpe or [step.get("type") for step in _parts(data["pre_tokenizer"])] != ["Split"]:
                return ByteBPETokenizer(text)
            known = BPETokenizer.from_json(text)
            return known if known.merges else CharTokenizer("".join(known.vocab[len(SPECIALS) :]))
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path}: not a vocabulary: {type(error).__name__} {error}") from None
    raise BadFile(f"{path}: neither a vocab.json (with vocab and merges) nor a tokenizer.json (with model)")


def _from_vocab_json(data: dict) -> BPETokenizer:
    vocab, merges = data["vocab"], data["merges"]
    if not isinstance(vocab, list) or not all(isinstance(s, str) for s in vocab) or len(vocab) <= len(SPECIALS):
        raise BadFile("its vocab is not a list of two special tokens and further strings")
    pairs = [tuple(m) if isinstance(m, list) else m for m in merges] if isinstance(merges, list) else [None]
    if not all(isinstance(m, tuple) and len(m) == 2 and all(isinstance(s, str) for s in m) for m in pairs):
        raise BadFile("its merges are not a list of pairs of strings")
    return BPETokenizer(vocab, pairs)


def _engine(ids: dict[str, int], merges: list[Merge]) -> tokenizers.Tokenizer:
    """Returns the library's tokenizer for a BPE of characters within lines."""
    engine = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return engine


def _with_specials(ids: dict[str, int], merges: list[Merge], specials: Sequence[str]) -> str:
    """Returns the text of a tokenizer.json with special tokens. It decodes without spaces between tokens."""
    engine = _engine(ids, merges)
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return engine.to_str(pretty=True)


def _encode(engine: tokenizers.Tokenizer, chunks: Iterator[str], dtype) -> np.ndarray:
    """Encodes chunks of text in parallel. Returns their ids, (N,)."""
    ids, chunks = [np.empty(0, dtype)], list(chunks)
    for first in range(0, len(chunks), BATCH):
        encoded = engine.encode_batch_fast(chunks[first : first + BATCH], add_special_tokens=False)
        ids += [np.array(e.ids, dtype) for e in encoded]
    return np.concatenate(ids)


def _chunks(text: str, border: re.Pattern) -> Iterator[str]:
    """Cuts a text at matches of `border` into chunks of at least CHUNK characters; the last may be shorter."""
    first = 0
    while first < len(text):
        found = border.search(text, first + CHUNK)
        end = found.start() if found else len(text)
        yield text[first:end]
        first = end


def _parse(text: str) -> tokenizers.Tokenizer:
    """Parses a tokenizer.json with the library. Raises BadFile."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself, no subclass
        raise BadFile(f"tokenizer.json: {error}") from None


def _parts(pre_tokenizer: dict | None) -> list[dict]:
    """Returns the steps of a pre-tokenizer, which is a single step or a sequence of steps."""
    if not pre_tokenizer:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]


def _byte_characters() -> dict[str, int]:
    """Maps GPT-2's character for each byte to the byte.

    A printable byte is represented by its Latin-1 character, and the others by U+0100, U+0101, ... in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = _byte_characters()
