"""Encodes a corpus to token ids. The ids of a large corpus are stored in a token file, which is memory-mapped.

A token file lies in the user's cache. Its name is derived from the SHA-256 of the text (Corpus.fingerprint) and of the
tokenizer, and from the division of the documents into sources (Corpus.division). It is written once and reused. Its
layout, for N ids of `width` bytes each and D documents, is little-endian:

| offset              | size      | content                                                                      |
| ------------------- | --------- | ---------------------------------------------------------------------------- |
| 0                   | 128       | header: magic, version, width, N, D, SHA-256 of text, SHA-256 of tokenizer   |
| 128                 | N * width | the ids                                                                      |
| 128 + N * width     | D * 16    | each document's length (with EOS) and index of its source, int64 each        |
| ... + D * 16        | the rest  | a JSON object: the count of each character that is not in the vocabulary     |

Example: one source has the documents "ab" and "b". The ids are a = 2, b = 3 and EOS = 1, of one byte each. The file has
128 + 5 + 32 + 2 = 167 bytes: the header, the ids 2 3 1 3 1, the documents (3, 0) and (2, 0), and the object {}.

An interrupted encoding can be resumed:

- The ids are written to NAME.part, whose header is zeros at first. After about every SAVE_TOKENS ids, NAME.part is
  synced to the disk, and then the progress (`State`) is written to NAME.json. In this order, the state never counts an
  id that is not on the disk.
- The next attempt truncates NAME.part after the ids that the state counts. It skips the pieces of text that the state
  counts, and encodes the others.
- The header is written last, and then NAME.part gets its final name. A file with the final name is therefore complete.

Assume in the example that the state is saved every 3 ids, and that the process ends during the second document. The
state is {pieces: 1, count: 3, documents: [[3, 0]], length: 0, unknown: {}}. The next attempt truncates NAME.part to
128 + 3 bytes and encodes "b".
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
from mlx_gpt.parse import parse_json
from mlx_gpt.paths import cache_dir

HEADER = struct.Struct("<8sIIQQ32s32s32x")
MAGIC, VERSION = b"MLXGPTTK", 1
MAPPED_BYTES = 16 << 20  # corpora of at least this size are encoded into a file
MAX_TRAINING_BYTES = 8 << 20  # approximate limit of the text that merges are trained on; training takes 50x the memory
SAVE_TOKENS = 16 << 20  # minimum number of ids between two saves of the encoding's progress
Note = Callable[[str], None]  # shows a message to the user


def make_tokenizer(corpus: Corpus, data: DataConfig, note: Note) -> Tokenizer:
    """Returns the tokenizer that the settings request: read from the file `data.vocab`, or trained on the corpus.

    The characters of a trained vocabulary are those of the whole corpus. Its merges are trained on every k-th piece of
    the text. k is the smallest number for which these pieces have about MAX_TRAINING_BYTES or less.

    Args:
        corpus: the text to train on. It is not read if `data.vocab` is set.
        data: the settings `vocab`, `tokenizer`, `vocab_size` and `bpe_rule`.
        note: receives a message about the trained vocabulary.

    Raises:
        UserError: if the vocabulary file does not exist, or if `data.vocab_size` is too small.
        BadFile: if the vocabulary file or the corpus cannot be read.
    """
    if data.vocab:
        return open_vocab(Path(data.vocab).expanduser())
    characters = alphabet(corpus.texts())
    if data.tokenizer == "char":
        return CharTokenizer("".join(sorted(characters)))
    every = -(-corpus.num_bytes // MAX_TRAINING_BYTES) or 1
    texts = itertools.islice(corpus.texts(), 0, None, every)
    kind = {"bpe": BPETokenizer, "byte-bpe": ByteBPETokenizer}[data.tokenizer]
    start = time.perf_counter()
    tokenizer = kind.train(texts, data.vocab_size, characters, data.bpe_rule)
    details = f", on one of every {every} pieces of the text" if every > 1 else ""
    details += "; the text has no further pairs to merge" if tokenizer.vocab_size < data.vocab_size else ""
    note(f"trained a vocabulary of {tokenizer.vocab_size} in {time.perf_counter() - start:.1f} s{details}")
    return tokenizer


@dataclass
class State:
    """The progress of an encoding.

    Attributes:
        pieces: the number of pieces of text that were encoded.
        count: the number of ids of these pieces, with EOS.
        documents: the length (with EOS) and the index of the source of each complete document.
        length: the number of ids so far of the document that is not complete.
        unknown: the count of each character that was dropped because it is not in the vocabulary.
    """

    pieces: int
    count: int
    documents: list[list[int]]
    length: int
    unknown: Counter


def encode(corpus: Corpus, tokenizer: Tokenizer, note: Note, refuse_unknown: bool = False) -> Tokens:
    """Encodes a corpus.

    Each document is followed by EOS. A corpus of a single document gets no EOS: one EOS, at the very end of the text,
    is too little for a model to learn where documents end.

    Args:
        corpus: the corpus.
        tokenizer: the tokenizer.
        note: receives progress messages and the number of dropped characters.
        refuse_unknown: whether a character that is not in the vocabulary is an error. If not, it is dropped.

    Returns:
        The tokens. Their ids are a memory map of the token file if the corpus has MAPPED_BYTES or more.

    Raises:
        UserError: if the corpus has characters that are not in the vocabulary, and either `refuse_unknown` is true or
            the corpus has no other characters.
        BadFile: if the corpus cannot be read.
        OutOfRoom: if the disk has no space for the token file.
    """
    large = corpus.num_bytes >= MAPPED_BYTES
    ids, documents, unknown = _mapped(corpus, tokenizer, note) if large else _in_memory(corpus, tokenizer)
    if unknown:
        message = f"corpus {corpus.name}: {name_unknown(unknown)} not in the vocabulary"
        if refuse_unknown or not len(ids):
            raise UserError(f"{message}; use another text, or train a new model on this text")
        note(f"{message}: {unknown.total():,} characters were dropped")
    if len(documents) == 1:
        ids, documents = ids[:-1], documents - [1, 0]
    lengths, sources = documents.T
    return Tokens.of(ids, lengths, sources, weights=corpus.weights)


def _in_memory(corpus: Corpus, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, Counter]:
    """Encodes a corpus in memory.

    Returns:
        The ids, (N,) `tokenizer.dtype`; the length and the source of each document, (D, 2) int64; and the count of each
        character that is not in the vocabulary.
    """
    state, parts = State(0, 0, [], 0, Counter()), [np.empty(0, tokenizer.dtype)]
    for piece, source in _with_sources(corpus):
        parts.append(_advance(state, piece, source, tokenizer))
    ids, documents = np.concatenate(parts), np.array(state.documents, np.int64).reshape(-1, 2)
    return ids, documents, state.unknown


def _with_sources(corpus: Corpus) -> Iterator[tuple[Piece, int]]:
    """Yields the pieces of all sources in order, each with the index of its source."""
    return ((piece, i) for i, source in enumerate(corpus.sources) for piece in source.pieces())


def _advance(state: State, piece: Piece, source: int, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes one piece of text and adds it to the state.

    Returns:
        The ids of the piece, followed by EOS if the piece ends a document. A document without any id gets no EOS and is
        not counted as a document.
    """
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
    """Returns the same as _in_memory, but the ids are a memory map of the token file.

    The token file of this text, division and tokenizer is written first if it does not exist or is invalid.
    """
    folder = cache_dir() / "tokens"
    make_folder(folder)
    hashes = bytes.fromhex(corpus.fingerprint), hashlib.sha256(json.dumps(tokenizer.to_dict()).encode()).digest()
    # The text determines the number of all documents. Without the last source, a single source adds nothing to the key.
    division = np.array(corpus.division[:-1], "<i8").tobytes()
    path = folder / f"{hashlib.sha256(b''.join([*hashes, division])).hexdigest()[:32]}.tokens"
    with locked(path.with_suffix(".lock"), lambda: note(f"{path}: another process is writing it; waiting")):
        if path.exists():
            with contextlib.suppress(BadFile):
                return _open(path, hashes, tokenizer)
            note(f"{path}: the file is incomplete or does not match; created again")
        _make(path, hashes, corpus, tokenizer, note)
    return _open(path, hashes, tokenizer)


def _open(path: Path, hashes: tuple[bytes, bytes], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, Counter]:
    """Memory-maps a token file. Returns the same as _in_memory.

    Raises:
        BadFile: if the file is truncated, belongs to another text or tokenizer, or has ids or lengths out of range.
    """
    dtype, size = np.dtype(tokenizer.dtype), path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise BadFile(f"{path}: truncated; remove the file")
        magic, version, width, count, num_documents, *found = HEADER.unpack(head)
        if (magic, version, width, *found) != (MAGIC, VERSION, dtype.itemsize, *hashes):
            raise BadFile(f"{path}: written by another version, or for another text or tokenizer")
        if size < HEADER.size + count * width + 16 * num_documents:
            raise BadFile(f"{path}: truncated; remove the file")
        highest = _highest(file, dtype, count)
        documents = np.frombuffer(file.read(16 * num_documents), "<i8").reshape(-1, 2)
        try:
            unknown = Counter(parse_json(file.read(), str(path)))
        except (BadFile, TypeError):
            raise BadFile(f"{path}: truncated; remove the file") from None
    ids = np.memmap(path, dtype, "r", HEADER.size, (count,))
    if documents[:, 0].sum() != count or (documents < 0).any() or highest >= tokenizer.vocab_size:
        raise BadFile(f"{path}: its document lengths or ids are out of range")
    return ids, documents, unknown


def _highest(file: BinaryIO, dtype: np.dtype, count: int) -> int:
    """Returns the highest of the next `count` ids of an open file, or 0 if `count` is 0.

    The file is read in blocks and not through the memory map. The operating system counts every page of a map that was
    accessed as resident memory of the process.
    """
    parts = (np.fromfile(file, dtype, min(1 << 24, count - done)) for done in range(0, count, 1 << 24))
    return max((int(part.max()) for part in parts), default=0)


def _make(path: Path, hashes: tuple[bytes, bytes], corpus: Corpus, tokenizer: Tokenizer, note: Note) -> None:
    """Writes the token file. Resumes an interrupted attempt at its last state, as the module docstring describes."""
    part, saved = path.with_suffix(".part"), path.with_suffix(".json")
    width = np.dtype(tokenizer.dtype).itemsize
    remedy = "move the cache to another disk with XDG_CACHE_HOME"
    # The number of tokens is not known yet. The estimate is one token for each byte of the source files.
    require_space(path.parent, corpus.num_bytes * width, f"the tokens of corpus {corpus.name}", remedy)
    state = _load_state(part, saved, width)
    if state.pieces:
        note(f"{corpus.name}: resuming its encoding, of which {state.count:,} tokens are done")
    else:
        note(f"{corpus.name}: {corpus.num_bytes / 1e6:.0f} MB of text are encoded to {path}")
    with convert_os_errors(part), open(part, "r+b" if state.pieces else "wb") as file:
        file.seek(HEADER.size + state.count * width)
        file.truncate()  # discards ids that were written after the last state
        last = state.count
        for number, (piece, source) in enumerate(_with_sources(corpus)):
            if number < state.pieces:
                continue
            file.write(_advance(state, piece, source, tokenizer).tobytes())
            if state.count - last >= SAVE_TOKENS:
                sync(file)  # before the state is written, which must not count ids that are not on the disk
                write_atomic(saved, [json.dumps(vars(state)).encode()])
                last = state.count
        file.write(np.array(state.documents, "<i8").tobytes())
        file.write(json.dumps(state.unknown).encode())
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, width, state.count, len(state.documents), *hashes))
        sync(file)
    os.replace(part, path)
    saved.unlink(missing_ok=True)


def _load_state(part: Path, saved: Path, width: int) -> State:
    """Returns the saved state of an interrupted attempt, or the initial state if there is no valid saved state.

    A state is also invalid if `part` is too short for the ids that it counts, of `width` bytes each.

    A state counts pieces of text, and corpus.PIECE decides where a text is cut into pieces. A version of mlxgpt with
    another PIECE therefore must not resume from the state; nothing checks this.
    """
    try:
        state = State(**parse_json(saved.read_bytes(), str(saved)))
        state.unknown = Counter(state.unknown)
        if part.stat().st_size >= HEADER.size + state.count * width:
            return state
    except (OSError, ValueError, TypeError):
        pass
    return State(0, 0, [], 0, Counter())
