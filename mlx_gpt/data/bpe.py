"""Byte-pair encodings (BPE): randyGPT's encoding merges characters, and GPT-2's merges bytes.

The Hugging Face `tokenizers` library ("the library" below) encodes text. For a randyGPT vocabulary that the library
would encode to other ids than randyGPT does, the text is encoded in Python instead.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mlx_gpt.config.schema import MAX_VOCAB
from mlx_gpt.data.bytelevel import BYTES
from mlx_gpt.data.merges import Merge, learn_merges
from mlx_gpt.data.tokenizer import FIM, SPECIALS, CharTokenizer, Tokenizer, character_specials, count_unknown, fim_names
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import parse_json

CHUNK = 1 << 16  # minimum length of a chunk in characters; each chunk is encoded by one thread of the library
FIM_NAMES = (FIM, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))  # the second ones are StarCoder's
BATCH = 64  # chunks per call of the library
# Places where a text can be cut without changing its tokens. LINE_END is for the BPE of characters: before a newline.
# WORD_END is for GPT-2's BPE of bytes: between a non-space character and the whitespace after it.
LINE_END, WORD_END = re.compile(r"(?=\n)"), re.compile(r"(?<=\S)(?=\s)")


class BPETokenizer(Tokenizer):
    """randyGPT's byte-pair encoding of characters.

    Each line is encoded separately, and a newline is a separate token. A line starts as one token per character. Then
    the following step repeats until no adjacent pair of tokens has a merge: find the merge with the lowest resulting
    id, and apply it to all its pairs in the line, from left to right. With the ids a = 2, b = 3, ab = 4 and aba = 5:

    >>> tokenizer = BPETokenizer(["<|bos|>", "<|eos|>", "a", "b", "ab", "aba"], [("a", "b"), ("ab", "a")])
    >>> tokenizer.encode("ababa").tolist()  # a b a b a, then ab ab a, then ab aba
    [4, 5]

    If a string occurs more than once in the vocabulary, text is encoded to its last id. A merge has no effect if its
    left part, its right part or its result is not in the vocabulary, or if it is listed again.

    Args:
        vocab: the string of each id, V items: BOS and EOS, then characters and merged strings, then FIM or nothing.
        merges: the pairs of strings (left, right) that are merged.
    """

    kind = "bpe"

    def __init__(self, vocab: Sequence[str], merges: Sequence[Merge]):
        self.fim_names = fim_names(vocab)
        end = len(vocab) - len(self.fim_names)
        self.fim_ids = tuple(range(end, len(vocab))) or None
        strings = [s.encode() for s in vocab[len(SPECIALS) : end]]
        super().__init__([b""] * len(SPECIALS) + strings + [b""] * len(self.fim_names))
        self.vocab, self.merges = list(vocab), list(merges)
        self.special_names = tuple(vocab[: len(SPECIALS)])
        self._ids = {s: i for i, s in enumerate(vocab[:end])}  # text is never encoded to FIM
        self._characters = {s for s in self._ids if len(s) == 1}
        known = [(a, b) for a, b in merges if {a, b, a + b} <= self._ids.keys()]
        # Maps a pair of ids to the id of the merged string.
        self._merged = {(self._ids[a], self._ids[b]): self._ids[a + b] for a, b in reversed(known)}
        self._engine = _engine(self._ids, self.merges_by_id()) if self._library_agrees() else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, characters: set[str], rule: str = "lines") -> "BPETokenizer":
        """Trains a vocabulary with learn_merges.

        Args:
            texts: the texts that pairs are counted in.
            vocab_size: the number of ids to reach: two special tokens, the characters and the merged strings. The
                result has fewer ids if the texts run out of pairs.
            characters: the characters of the vocabulary. They must include every character of `texts`.
            rule: the rule that chooses the merges, a name in merges.RULES.

        Raises:
            UserError: if the special tokens and the characters alone take `vocab_size` ids or more.
        """
        vocab = [*SPECIALS, *sorted(characters)]
        if vocab_size <= len(vocab):
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: the {len(characters)} distinct characters of the text and "
                f"two special tokens take {len(vocab)} ids before the first merge; choose a larger size"
            )
        merges = learn_merges(texts, vocab, len(SPECIALS), vocab_size, rule)
        return cls([*vocab, *(left + right for left, right in merges)], merges)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """Reads the text of a tokenizer.json that tokenizer_json() returned."""
        model = parse_json(text, "tokenizer.json")["model"]
        ids = model["vocab"]
        if not all(type(i) is int for i in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
            raise BadFile(f"tokenizer.json: its {len(ids)} ids are not the numbers from 0 to {len(ids) - 1}")
        return cls.from_dict({"vocab": sorted(ids, key=ids.get), "merges": model["merges"]})

    @classmethod
    def from_dict(cls, data: dict) -> "BPETokenizer":
        """Reads the JSON values of to_dict() or of a vocab.json. Raises BadFile if they are wrong."""
        vocab, merges = data["vocab"], data["merges"]
        if not isinstance(vocab, list) or not all(isinstance(s, str) for s in vocab) or len(vocab) <= len(SPECIALS):
            raise BadFile("tokenizer: its vocab is not a list of two special tokens and at least one further string")
        pairs = [tuple(m) if isinstance(m, list) else m for m in merges] if isinstance(merges, list) else [None]
        if not all(isinstance(m, tuple) and len(m) == 2 and all(isinstance(s, str) for s in m) for m in pairs):
            raise BadFile("tokenizer: its merges are not a list of pairs of strings")
        return cls(vocab, pairs)

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

    def with_fim(self) -> "BPETokenizer":
        return BPETokenizer([*self.vocab, *FIM], self.merges)

    def to_vocab_json(self) -> str:
        """Returns the text of a vocab.json, as randyGPT writes it."""
        return json.dumps({"vocab": self.vocab, "merges": self.merges}, indent=2, ensure_ascii=False)

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json, with the special tokens.

        Raises:
            UserError: if a string occurs twice in the vocabulary, or if the library would encode text to other ids.
        """
        if not self.has_json():
            raise UserError(
                "a tokenizer.json cannot represent this vocabulary: a string occurs twice, two merges give the same "
                "string, or a merged string has a lower id than one of its parts; save it as vocab.json"
            )
        return _with_specials(
            {s: i for i, s in enumerate(self.vocab)}, self.merges_by_id(), self.special_names + self.fim_names
        )

    def to_files(self) -> dict[str, str]:
        """vocab.json, and tokenizer.json if that format can represent the vocabulary."""
        files = {"vocab.json": self.to_vocab_json()}
        return files | {"tokenizer.json": self.to_json()} if self.has_json() else files

    def has_json(self) -> bool:
        """Whether a tokenizer.json can represent the vocabulary: _library_agrees(), and no string occurs twice."""
        return self._engine is not None and len(set(self.vocab)) == len(self.vocab)

    def _library_agrees(self) -> bool:
        """Whether the library is certain to give the ids that the rule in the class docstring gives.

        The library applies one merge at one place at a time: the merge with the lowest rank, at its leftmost place. The
        rule applies a merge at all its places before it looks for the next merge. The results are equal if every merged
        id results from a single pair, and if both ids of that pair are lower. Then a merge never creates a pair with a
        lower merged id, which the library would merge before the remaining places.

        Example of a difference: (a, b) -> 5 and (ab, a) -> 4, where 4 is lower than the id 5 of its part ab. The rule
        encodes "ababa" as ab ab a, then ab aba. The library merges ab a b a, then aba b a, and finds no other pair.
        """
        merged = list(self._merged.values())
        return len(set(merged)) == len(merged) and all(max(pair) < m for pair, m in self._merged.items())

    def merges_by_id(self) -> list[Merge]:
        """Returns the merges that have an effect, sorted by merged id."""
        pairs = sorted(self._merged.items(), key=lambda item: item[1])
        return [(self.vocab[a], self.vocab[b]) for (a, b), _ in pairs]

    def _encode_line(self, line: str) -> list[int]:
        """Encodes one line, or a newline alone, by the rule in the class docstring, without the library."""
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
    """GPT-2's byte-level byte-pair encoding: merges bytes within words.

    No character is unknown, since every byte has an id. Source: Radford et al., "Language Models are Unsupervised
    Multitask Learners", 2019, section 2.2.

    Args:
        text: the text of a tokenizer.json: a byte-level BPE without a normalizer.
        specials: the names of BOS and EOS. By default, EOS is <|eos|>, <|endoftext|> or </s>. BOS is <|bos|> or <s>,
            or the EOS token if the text has neither.
        vocab_size: the number of ids, if that is more than the text has. The ids after its last one stand for no text.
        chat_template: the Jinja template of a model for chats, for folders that are written.

    Raises:
        BadFile: if the text is not such a file, or has more than `vocab_size` ids.
    """

    kind = "byte-bpe"

    def __init__(
        self,
        text: str,
        specials: Sequence[str] | None = None,
        vocab_size: int = 0,
        chat_template: str | None = None,
    ):
        self._json, self.chat_template = text, chat_template
        facts = parse_json(text, "tokenizer.json")
        kinds = {part.get("type") for part in steps_of(facts.get("pre_tokenizer"))}
        model = facts["model"]
        options = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
        if model.get("type") != "BPE" or "ByteLevel" not in kinds or facts.get("normalizer") or options:
            raise BadFile(
                "tokenizer.json: not supported; give a byte-level BPE without a normalizer, dropout, prefix or suffix, "
                "such as GPT-2's"
            )
        for merge in model["merges"]:  # the library ends with a panic if the result of a merge is no token
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if "".join(pair) not in model["vocab"]:
                raise BadFile(f"tokenizer.json: the merge {str(merge)[:60]!r} gives a string that is not a token")
        engine = _parse(text)
        engine.no_truncation()  # the whole text is encoded, whatever the file says
        engine.no_padding()
        ids = engine.get_vocab(with_added_tokens=True)
        if len(set(ids.values())) < len(ids):
            twice = next(i for i, count in Counter(ids.values()).items() if count > 1)
            raise BadFile(f"tokenizer.json: two tokens have the id {twice}")
        if max(ids.values(), default=0) >= MAX_VOCAB:
            raise BadFile(f"tokenizer.json: has the id {max(ids.values())}, but ids must be below {MAX_VOCAB}")
        hidden = {token["content"] for token in facts.get("added_tokens", []) if token.get("special")}
        if specials and not (len(specials) == 2 and set(specials) <= ids.keys()):
            raise BadFile(f"tokenizer.json: has no tokens {str(specials)[:80]}, which should be BOS and EOS")
        ends = [name for name in ("<|eos|>", "<|endoftext|>", "</s>") if name in ids]
        if not (specials or ends):
            raise BadFile("tokenizer.json: has no end-of-text token; add <|eos|>, <|endoftext|> or </s>")
        own = max(ids.values()) + 1
        if vocab_size and own > vocab_size:
            raise BadFile(f"tokenizer.json: has {own} ids, but the model has {vocab_size}")
        pieces = [b""] * max(own, vocab_size)
        for string, i in ids.items():
            pieces[i] = b"" if string in hidden else bytes(BYTES[c] for c in string)
        super().__init__(pieces)
        begins = [name for name in ("<|bos|>", "<s>") if name in ids]
        usual = ([*begins, ends[0]][0], ends[0]) if ends else None
        self.special_names = tuple(specials or usual)
        # What to_dict() must hold besides the text.
        self._further = {
            "specials": list(self.special_names) if self.special_names != usual else None,
            "vocab_size": vocab_size if vocab_size > own else None,
            "chat_template": chat_template,
        }
        self.bos_id, self.eos_id = (ids[name] for name in self.special_names)
        self.fim_ids = next((tuple(ids[name] for name in names) for names in FIM_NAMES if hidden >= set(names)), None)
        engine.encode_special_tokens = True  # the characters <|eos|> in a text are encoded as text, not as EOS
        self._engine = engine

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, characters: set[str], rule: str = "lines"
    ) -> "ByteBPETokenizer":
        """Trains a vocabulary with the library, which merges bytes within words.

        Args:
            texts: the texts that pairs are counted in.
            vocab_size: the number of ids to reach: two special tokens, 256 bytes and the merged strings.
            characters, rule: ignored. BPETokenizer.train has the same arguments.

        Raises:
            UserError: if the special tokens and the bytes alone take `vocab_size` ids or more.
        """
        smallest = len(SPECIALS) + len(BYTES)
        if vocab_size <= smallest:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: 256 bytes and two special tokens take {smallest} ids "
                "before the first merge; choose a larger size"
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
        # Python decodes invalid bytes of a command line to lone surrogates, which UTF-8 cannot encode. They become "?".
        text = text.encode("utf-8", "replace").decode()
        return _encode(self._engine, _chunks(text, WORD_END), self.dtype)

    def to_dict(self) -> dict:
        return {"kind": self.kind, "json": self._json} | {k: v for k, v in self._further.items() if v}

    def with_fim(self) -> "ByteBPETokenizer":
        engine = _parse(self._json)
        engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in FIM])
        return ByteBPETokenizer(engine.to_str(), **{k: v for k, v in self._further.items() if v})

    def to_json(self) -> str:
        return self._json

    def to_files(self) -> dict[str, str]:
        return {"tokenizer.json": self._json}


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Returns the text of a tokenizer.json. A character tokenizer becomes a BPE without merges. Raises UserError."""
    if tokenizer.kind != CharTokenizer.kind:
        return tokenizer.to_json()
    specials = character_specials(tokenizer.characters)
    fim = character_specials(tokenizer.characters, FIM) if tokenizer.fim_ids else ()
    strings = [*specials, *tokenizer.characters, *fim]
    return _with_specials({s: i for i, s in enumerate(strings)}, [], specials + fim)


def _engine(ids: dict[str, int], merges: list[Merge]) -> tokenizers.Tokenizer:
    """Returns a tokenizer of the library that merges characters within lines. `merges` is in order of rank."""
    engine = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    return engine


def _with_specials(ids: dict[str, int], merges: list[Merge], specials: Sequence[str]) -> str:
    """Returns the text of a tokenizer.json for a BPE of characters, with special tokens."""
    engine = _engine(ids, merges)
    engine.decoder = decoders.Fuse()  # joins the decoded tokens without spaces
    engine.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return engine.to_str(pretty=True)


def _encode(engine: tokenizers.Tokenizer, chunks: Iterator[str], dtype) -> np.ndarray:
    """Encodes chunks of text in parallel. Returns the ids of all chunks in order, (N,) `dtype`."""
    ids, chunks = [np.empty(0, dtype)], list(chunks)
    for first in range(0, len(chunks), BATCH):
        encoded = engine.encode_batch_fast(chunks[first : first + BATCH], add_special_tokens=False)
        ids += [np.array(e.ids, dtype) for e in encoded]
    return np.concatenate(ids)


def _chunks(text: str, border: re.Pattern) -> Iterator[str]:
    """Cuts a text at empty matches of `border` into chunks of at least CHUNK characters. The last may be shorter."""
    first = 0
    while first < len(text):
        found = border.search(text, first + CHUNK)
        end = found.start() if found else len(text)
        yield text[first:end]
        first = end


def _parse(text: str) -> tokenizers.Tokenizer:
    """Parses the text of a tokenizer.json with the library. Raises BadFile if the library rejects it."""
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # the library raises Exception itself, or a PanicException, which is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise BadFile(f"tokenizer.json: {error}") from None


def steps_of(pre_tokenizer: dict | None) -> list[dict]:
    """Returns the steps of the pre_tokenizer in a tokenizer.json: none, a single step, or those of a Sequence."""
    if not pre_tokenizer:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
