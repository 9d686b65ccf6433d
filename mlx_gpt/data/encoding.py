"""Text to ids: in memory, or for a large text into a file that is mapped, kept, and gone on with where it was left.

The file: a header of 128 bytes (magic, version, bytes an id, ids, documents, SHA-256 of the text and of the tokenizer),
the ids, then a (D, 2) int64 array, each document's length and source, then the unknown characters as JSON. Its name is
made of both hashes, so another text or tokenizer is another file.
"""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer, open_vocab
from mlx_gpt.data.corpus import Corpus, Piece
from mlx_gpt.data.tokenizer import CharTokenizer, Tokenizer, alphabet, name_unknown
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import convert_os_errors, locked, make_folder, require_space, sync, write_atomic
from mlx_gpt.paths import cache_dir

HEADER = struct.Struct("<8sIIQQ32s32s32x")
MAGIC, VERSION = b"MLXGPTTK", 1
KEPT_BYTES = 16 << 20  # of text, from which on its ids are kept in a file
TRAINED_BYTES = 8 << 20  # of text, at most, that a vocabulary is trained on: it takes fifty times as much memory
SAVE_TOKENS = 16 << 20  # ids between two states that an interrupted encoding goes on from
Note = Callable[[str], None]


def make_tokenizer(corpus: Corpus, data: DataConfig, note: Note) -> Tokenizer:
    """The vocabulary that the settings ask for: read from a file, or made from the text."""
    if data.vocab:
        return open_vocab(Path(data.vocab).expanduser())
    characters = alphabet(corpus.texts())
    if data.tokenizer == "char":
        return CharTokenizer("".join(sorted(characters)))
    every = -(-corpus.num_bytes // TRAINED_BYTES) or 1
    texts = itertools.islice(corpus.texts(), 0, None, every)
    kind = {"bpe": BPETokenizer, "byte-bpe": ByteBPETokenizer}[data.tokenizer]
    start = time.perf_counter()
    tokenizer = kind.train(texts, data.vocab_size, characters)
    told = f", on one piece of text in {every}" if every > 1 else ""
    told += ": the text has no more pairs" if tokenizer.vocab_size < data.vocab_size else ""
    note(f"trained a vocabulary of {tokenizer.vocab_size} in {time.perf_counter() - start:.1f} s{told}")
    return tokenizer


@dataclass
class State:
    """How far an encoding has come: pieces read, ids written, documents as (length, source), characters left out."""

    pieces: int
    count: int
    documents: list[list[int]]
    length: int  # of the document that is not ended yet
    unknown: Counter


def encode(corpus: Corpus, tokenizer: Tokenizer, note: Note, refuse_unknown: bool = False) -> Tokens:
    """The corpus as ids; where there are several documents each ends in EOS.

    Unknown characters are left out and told of, or refused with a UserError.
    """
    large = corpus.num_bytes >= KEPT_BYTES
    ids, documents, unknown = _mapped(corpus, tokenizer, note) if large else _in_memory(corpus, tokenizer)
    if unknown:
        told = f"corpus {corpus.name}: {name_unknown(unknown)} not in the vocabulary"
        if refuse_unknown or not len(ids):
            raise UserError(f"{told}; take other text, or train a new model on this one")
        note(f"{told}: {unknown.total():,} characters left out")
    if len(documents) == 1:  # a lone document has no end to learn
        ids, documents = ids[:-1], documents - [1, 0]
    lengths, sources = documents.T
    return Tokens.of(ids, lengths, sources, weights=corpus.weights)


def _in_memory(corpus: Corpus, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, Counter]:
    state, parts = State(0, 0, [], 0, Counter()), [np.empty(0, tokenizer.dtype)]
    for piece, source in _with_sources(corpus):
        parts.append(_advance(state, piece, source, tokenizer))
    ids, documents = np.concatenate(parts), np.array(state.documents, np.int64).reshape(-1, 2)
    return ids, documents, state.unknown


def _with_sources(corpus: Corpus) -> Iterator[tuple[Piece, int]]:
    return ((piece, i) for i, source in enumerate(corpus.sources) for piece in source.pieces())


def _advance(state: State, piece: Piece, source: int, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of one more piece, with EOS where its document ends, and the state after it."""
    ids = tokenizer.encode(piece.text, state.unknown)
    state.length += len(ids)
    if piece.ends and state.length:
        ids = np.append(ids, np.array([tokenizer.eos_id], tokenizer.dtype))
        state.documents.append([state.length + 1, source])
        state.length = 0
    state.pieces += 1
    state.count += len(ids)
    return ids


def _mapped(corpus: Corpus, tokenizer: Tokenizer, note: Note) -> tuple[np.ndarray, np.ndarray, Counter]:
    """From the file of this text and tokenizer, which is made first if need be."""
    folder = cache_dir() / "tokens"
    make_folder(folder)
    hashes = bytes.fromhex(corpus.fingerprint), hashlib.sha256(json.dumps(tokenizer.to_dict()).encode()).digest()
    path = folder / f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}.tokens"
    with locked(path.with_suffix(".lock"), lambda: note(f"{path}: another process is making it; waiting")):
        if path.exists():
            with contextlib.suppress(BadFile):
                return _open(path, hashes, tokenizer)
            note(f"{path}: not whole; made anew")
        _make(path, hashes, corpus, tokenizer, note)
    return _open(path, hashes, tokenizer)


def _open(path: Path, hashes: tuple[bytes, bytes], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, Counter]:
    """Raises BadFile unless the file is exactly what its header says, and of these hashes."""
    dtype, size = np.dtype(tokenizer.dtype), path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise BadFile(f"{path}: truncated")
        magic, version, width, count, num_documents, *found = HEADER.unpack(head)
        if (magic, version, width, *found) != (MAGIC, VERSION, dtype.itemsize, *hashes):
            raise BadFile(f"{path}: not the ids of this text by this tokenizer")
        if size < HEADER.size + count * width + 16 * num_documents:
            raise BadFile(f"{path}: truncated")
        highest = _highest(file, dtype, count)
        documents = np.frombuffer(file.read(16 * num_documents), "<i8").reshape(-1, 2)
        try:
            unknown = Counter(json.loads(file.read()))
        except ValueError:
            raise BadFile(f"{path}: truncated") from None
    ids = np.memmap(path, dtype, "r", HEADER.size, (count,))
    if documents[:, 0].sum() != count or (documents < 0).any() or highest >= tokenizer.vocab_size:
        raise BadFile(f"{path}: its documents or ids are out of range")
    return ids, documents, unknown


def _highest(file: BinaryIO, dtype: np.dtype, count: int) -> int:
    """The highest of the next `count` ids, read in parts: what is mapped and touched would count as resident."""
    parts = (np.fromfile(file, dtype, min(1 << 24, count - done)) for done in range(0, count, 1 << 24))
    return max((int(part.max()) for part in parts), default=0)


def _make(path: Path, hashes: tuple[bytes, bytes], corpus: Corpus, tokenizer: Tokenizer, note: Note) -> None:
    """Writes the file, going on from the last state of an earlier attempt."""
    part, saved = path.with_suffix(".part"), path.with_suffix(".json")
    width = np.dtype(tokenizer.dtype).itemsize
    cure = "put the cache on another disk by XDG_CACHE_HOME"
    require_space(path.parent, corpus.num_bytes * width, f"the tokens of corpus {corpus.name}", cure)
    state = _load_state(part, saved)
    if state.pieces:
        note(f"{corpus.name}: going on with its tokens, of which {state.count:,} are there")
    else:
        note(f"{corpus.name}: {corpus.num_bytes / 1e6:.0f} MB of text become tokens in {path}")
    with convert_os_errors(part), open(part, "r+b" if state.pieces else "wb") as file:
        file.seek(HEADER.size + state.count * width)
        file.truncate()
        last = state.count
        for number, (piece, source) in enumerate(_with_sources(corpus)):
            if number < state.pieces:
                continue
            file.write(_advance(state, piece, source, tokenizer).tobytes())
            if state.count - last >= SAVE_TOKENS:
                sync(file)
                write_atomic(saved, [json.dumps(vars(state)).encode()])
                last = state.count
        file.write(np.array(state.documents, "<i8").tobytes())
        file.write(json.dumps(state.unknown).encode())
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, width, state.count, len(state.documents), *hashes))
        sync(file)
    os.replace(part, path)
    saved.unlink(missing_ok=True)


def _load_state(part: Path, saved: Path) -> State:
    """What an earlier attempt left, if it is whole."""
    try:
        state = State(**json.loads(saved.read_text("utf-8")))
        state.unknown = Counter(state.unknown)
        if part.stat().st_size >= HEADER.size + state.count:
            return state
    except (OSError, ValueError, TypeError):
        pass
    return State(0, 0, [], 0, Counter())
