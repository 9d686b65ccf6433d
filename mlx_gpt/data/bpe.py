"""Byte-pair encodings: randyGPT's of characters, and GPT-2's of bytes; text is encoded by the `tokenizers` library."""

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

CHUNK = 1 << 16  # characters that are encoded together, on one core
BATCH = 64  # chunks in flight
# Where text may be cut without changing its tokens: a line ends, or, for bytes, a word does.
LINE_END, WORD_END = re.compile(r"(?=\n)"), re.compile(r"(?<=\S)(?=\s)")


class BPETokenizer(Tokenizer):
    """randyGPT's encoding: a line starts as characters, and the adjacent pairs with the lowest merged id are merged.

    All pairs of that id, from left to right, until no pair is left that merges. Newlines stand for themselves. A string
    that stands twice in the vocabulary is encoded as the last of its ids.
    """

    kind = "bpe"

    def __init__(self, vocab: Sequence[str], merges: Sequence[Merge]):
        super().__init__([b""] * len(SPECIALS) + [s.encode() for s in vocab[len(SPECIALS) :]])
        self.vocab, self.merges = list(vocab), list(merges)
        self.special_names = tuple(vocab[: len(SPECIALS)])
        self._ids = {s: i for i, s in enumerate(vocab)}
        self._characters = {s for s in self._ids if len(s) == 1}
        known = [(a, b) for a, b in merges if {a, b, a + b} <= self._ids.keys()]
        firing = {(self._ids[a], self._ids[b]): self._ids[a + b] for a, b in reversed(known)}
        self._merged = firing
        self._engine = _engine(self._ids, self._in_order()) if self._regular() else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, characters: set[str]) -> "BPETokenizer":
        """Merges the most frequent pair until there are `vocab_size` ids, as learn_merges() says.

        Raises UserError if characters alone are more.
        """
        vocab = [*SPECIALS, *sorted(characters)]
        if vocab_size <= len(vocab):
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the text has {len(characters)} characters, with two "
                f"specials {len(vocab)} ids before the first merge; give more"
            )
        merges = learn_merges(texts, vocab, len(SPECIALS), vocab_size)
        return cls([*vocab, *(left + right for left, right in merges)], merges)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """From a tokenizer.json as to_json() makes it."""
        model = json.loads(text)["model"]
        ids = model["vocab"]
        vocab = [""] * (max(ids.values()) + 1)
        for string, i in ids.items():
            vocab[i] = string
        return cls(vocab, [tuple(merge) for merge in model["merges"]])

    def encode(self, text: str, unknown: Counter | None = None) -> np.ndarray:
        strange = set(text) - self._characters
        if strange:
            count_unknown((c for c in text if c in strange), unknown)
            text = text.translate({ord(c): None for c in strange - {"\n"}})  # which still ends a line
        if self._engine:
            return _encode(self._engine, _chunks(text, LINE_END), self.dtype)
        pieces = (piece for piece in re.split(r"(\n)", text) if piece)
        return np.array([i for piece in pieces for i in self._encode_line(piece)], self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "vocab": self.vocab, "merges": [list(merge) for merge in self.merges]}

    def to_vocab_json(self) -> str:
        """The file that randyGPT writes."""
        return json.dumps({"vocab": self.vocab, "merges": self.merges}, indent=2, ensure_ascii=False)

    def to_json(self) -> str:
        """A tokenizer.json with the specials. Raises UserError where the library can't compute what this does."""
        if not self._is_librarys():
            raise UserError(
                "a tokenizer.json can't hold this vocabulary: it has a string twice, or merges out of order; "
                "keep it as vocab.json"
            )
        return _with_specials(self._ids, self._in_order(), self.special_names)

    @property
    def file_name(self) -> str:
        """What to_file() gives: a tokenizer.json where the library can compute this, else a vocab.json."""
        return "tokenizer.json" if self._is_librarys() else "vocab.json"

    def to_file(self) -> str:
        return self.to_json() if self._is_librarys() else self.to_vocab_json()

    def _is_librarys(self) -> bool:
        """Whether a tokenizer.json can hold this: no string twice, merges that fire in order."""
        return self._engine is not None and len(self._ids) == len(self.vocab)

    def _regular(self) -> bool:
        """Whether the library, which merges pair by pair and one place after the other, comes to the same.

        It does if each id is merged from one pair, and from lower ids: then no merge ever makes way for an earlier one.
        """
        merged = list(self._merged.values())
        return len(set(merged)) == len(merged) and all(max(pair) < m for pair, m in self._merged.items())

    def _in_order(self) -> list[Merge]:
        """The merges that can fire, by the id they give."""
        pairs = sorted(self._merged.items(), key=lambda item: item[1])
        return [(self.vocab[a], self.vocab[b]) for (a, b), _ in pairs]

    def _encode_line(self, line: str) -> list[int]:
        """The rule itself, for vocabularies that the library would read otherwise."""
        ids = [self._ids[c] for c in line if c in self._ids]
        while found := [self._merged[pair] for pair in zip(ids, ids[1:], strict=False) if pair in self._merged]:
            best, merged, i = min(found), [], 0
            while i < len(ids):
                fires = self._merged.get(tuple(ids[i : i + 2])) == best
                merged.append(best if fires else ids[i])
                i += 2 if fires else 1
            ids = merged
        return ids


class ByteBPETokenizer(Tokenizer):
    """GPT-2's encoding: words, cut by its pattern, start as UTF-8 bytes, so nothing is unknown."""

    kind = "byte-bpe"

    def __init__(self, text: str):
        """`text`: any tokenizer.json of a byte-level BPE with an end-of-text token."""
        self._json = text
        engine = _parse(text)
        facts = json.loads(text)
        kinds = {part.get("type") for part in _parts(facts.get("pre_tokenizer"))}
        if facts["model"].get("type") != "BPE" or "ByteLevel" not in kinds or facts.get("normalizer"):
            raise BadFile("tokenizer.json: not a byte-level BPE without a normalizer, as GPT-2's; no other is read")
        ids = engine.get_vocab(with_added_tokens=True)
        specials = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
        ends = [name for name in ("<|eos|>", "<|endoftext|>", "</s>") if name in ids]
        if not ends:
            raise BadFile("tokenizer.json: no <|eos|>, <|endoftext|> or </s> in it to end a document with")
        pieces = [b""] * (max(ids.values()) + 1)
        for string, i in ids.items():
            pieces[i] = b"" if string in specials else bytes(BYTES[c] for c in string)
        super().__init__(pieces)
        begins = [name for name in ("<|bos|>", "<s>") if name in ids]
        self.special_names = ([*begins, ends[0]][0], ends[0])
        self.bos_id, self.eos_id = (ids[name] for name in self.special_names)
        engine.encode_special_tokens = True  # a text that spells a special is a text
        self._engine = engine

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, characters: set[str]) -> "ByteBPETokenizer":
        """As BPETokenizer.train(), on bytes, within words, by the library."""
        smallest = len(SPECIALS) + len(BYTES)
        if vocab_size <= smallest:
            raise UserError(f"a vocabulary of {vocab_size} is too small: bytes and specials alone are {smallest}")
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
        text = text.encode("utf-8", "replace").decode()  # what no UTF-8 holds, as of a terminal's broken bytes
        return _encode(self._engine, _chunks(text, WORD_END), self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "json": self._json}

    def to_json(self) -> str:
        return self._json

    file_name, to_file = "tokenizer.json", to_json


def tokenizer_from_dict(data: dict) -> Tokenizer:
    """The tokenizer that to_dict() told of. Raises BadFile."""
    try:
        match data["kind"]:
            case CharTokenizer.kind:
                return CharTokenizer(data["characters"])
            case BPETokenizer.kind:
                return BPETokenizer(data["vocab"], [tuple(merge) for merge in data["merges"]])
            case ByteBPETokenizer.kind:
                return ByteBPETokenizer(data["json"])
            case kind:
                raise BadFile(f"tokenizer of kind {kind!r}; this version reads 'char', 'bpe' and 'byte-bpe'")
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"tokenizer: not one of ours: {type(error).__name__} {error}") from None


def character_json(characters: str) -> str:
    """A tokenizer.json of characters alone: pairs that never merge."""
    specials = character_specials(characters)
    return _with_specials({s: i for i, s in enumerate([*specials, *characters])}, [], specials)


def character_specials(characters: str) -> tuple[str, ...]:
    """The specials' names; with a private character about them, where the alphabet could spell them."""
    if not any(set(name) <= set(characters) for name in SPECIALS):
        return SPECIALS
    mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in characters)
    return tuple(f"{mark}{name}{mark}" for name in SPECIALS)


def open_vocab(path: Path) -> Tokenizer:
    """A vocab.json of randyGPT's, or a tokenizer.json: ours, or any byte-level BPE. Raises BadFile, UserError.

    A folder stands for the tokenizer.json in it.
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
            ours = data["model"].get("type") == "BPE" and [p.get("type") for p in _parts(data["pre_tokenizer"])] == [
                "Split"
            ]
            if not ours:
                return ByteBPETokenizer(text)
            known = BPETokenizer.from_json(text)
            return known if known.merges else CharTokenizer("".join(known.vocab[len(SPECIALS) :]))
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path}: not a vocabulary: {type(error).__name__} {error}") from None
    raise BadFile(f"{path}: neither a vocab.json (vocab, merges) nor a tokenizer.json (model)")


def _from_vocab_json(data: dict) -> BPETokenizer:
    vocab, merges = data["vocab"], data["merges"]
    if not isinstance(vocab, list) or not all(isinstance(s, str) for s in vocab) or len(vocab) <= len(SPECIALS):
        raise BadFile("its vocab is not a list of two specials and further strings")
    pairs = [tuple(m) if isinstance(m, list) else m for m in merges] if isinstance(merges, list) else [None]
    if not all(isinstance(m, tuple) and len(m) == 2 and all(isinstance(s, str) for s in m) for m in pairs):
        raise BadFile("its merges are not a list of pairs of strings")
    return BPETokenizer(vocab, pairs)


def _engine(ids: dict[str, int], merges: list[Merge]) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return engine


def _with_specials(ids: dict[str, int], merges: list[Merge], specials: Sequence[str]) -> str:
    """A tokenizer.json that knows its specials and decodes without spaces between tokens."""
    engine = _engine(ids, merges)
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return engine.to_str(pretty=True)


def _encode(engine: tokenizers.Tokenizer, chunks: Iterator[str], dtype) -> np.ndarray:
    ids, chunks = [np.empty(0, dtype)], list(chunks)
    for first in range(0, len(chunks), BATCH):
        encoded = engine.encode_batch_fast(chunks[first : first + BATCH], add_special_tokens=False)
        ids += [np.array(e.ids, dtype) for e in encoded]
    return np.concatenate(ids)


def _chunks(text: str, border: re.Pattern) -> Iterator[str]:
    """The text in pieces of at least CHUNK characters, cut at borders."""
    first = 0
    while first < len(text):
        found = border.search(text, first + CHUNK)
        end = found.start() if found else len(text)
        yield text[first:end]
        first = end


def _parse(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises this very class
        raise BadFile(f"tokenizer.json: {error}") from None


def _parts(pre_tokenizer: dict | None) -> list[dict]:
    """The steps of a pre-tokenizer, one or a sequence."""
    if not pre_tokenizer:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]


def _byte_characters() -> dict[str, int]:
    """GPT-2's visible character of each byte: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTES = _byte_characters()
