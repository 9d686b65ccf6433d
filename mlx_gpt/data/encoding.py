"""Encoding of a corpus to token ids, in memory or, for large corpora, in a token file that is memory-mapped.

A token file is stored in the user's cache, under a name derived from the hashes of text and tokenizer. It is written
once and reused. Its layout, little-endian, for N ids of `width` bytes and D documents:

| offset              | size      | content                                                                      |
| ------------------- | --------- | ---------------------------------------------------------------------------- |
| 0                   | 128       | header: magic, version, width, N, D, SHA-256 of text, SHA-256 of tokenizer   |
| 128                 | N * width | the ids                                                                      |
| 128 + N * width     | D * 16    | length (EOS included) and source of each document, int64 each                |
| ... + D * 16        | the rest  | the counts of characters that are not in the vocabulary, a JSON object       |

Example: the documents "ab" and "b" of one source, with the ids a = 2, b = 3, EOS = 1 in one byte each. The file has
128 + 5 + 32 + 2 = 167 bytes: the header, the ids 2 3 1 3 1, the documents (3, 0) and (2, 0), and the object {}.

An interrupted encoding resumes. The ids are written to NAME.part with a header of zeros. After every SAVE_TOKENS ids
the file is synced, and then the progress (`State`) is written to NAME.json. So the state never counts an id that is not
on the disk. A later attempt cuts NAME.part off after the ids of the state, skips the pieces of text that the state
counts, and encodes the others. In the example, with a save after every 3 ids and a stop during the second document,
the state is {pieces: 1, count: 3, documents: [[3, 0]], length: 0, unknown: {}}. The attempt that resumes cuts the file
to 128 + 3 bytes and encodes "b". The header is written last and the file is renamed when it is complete, so a file
with the final name is complete.
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
MAPPED_BYTES = 16 << 20  # corpora of at least this size are encoded into a file
MAX_TRAINING_BYTES = 8 << 20  # of text for training a vocabulary, which takes fifty times as much memory
SAVE_TOKENS = 16 << 20  # ids between two saves of an encoding's state
Note = Callable[[str], None]  # shows a message to the user


def make_tokenizer(corpus: Corpus, data: DataConfig, note: Note) -> Tokenizer:
    """Returns the tokenizer that the settings request: read from `data.vocab`, or trained on the corpus.

    The characters of the vocabulary come from the whole corpus. Merges are trained on at most about MAX_TRAINING_BYTES
    of it: on every k-th piece of text, so that the pieces are spread evenly.

    Raises:
        BadFile, UserError: if the vocabulary file cannot be read, or if `data.vocab_size` is too small.
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
    tokenizer = kind.train(texts, data.vocab_size, characters)
    details = f", on one of every {every} pieces of the text" if every > 1 else ""
    details += "; the text has no more pairs to merge" if tokenizer.vocab_size < data.vocab_size else ""
    note(f"trained a vocabulary of {tokenizer.vocab_size} in {time.perf_counter() - start:.1f} s{details}")
    return tokenizer


@dataclass
class State:
    """The progress of an encoding.

    Attributes:
        pieces: the number of pieces of text encoded.
        count: the number of ids they gave, with EOS.
        documents: the length, with EOS, and the source of each complete document.
        length: the number of ids of the incomplete document.
        unknown: the counts of the characters that were dropped.
    """

    pieces: int
    count: int
    documents: list[list[int]]
    length: int
    unknown: Counter


def encode(corpus: Corpus, tokenizer: Tokenizer, note: Note, refuse_unknown: bool = False) -> Tokens:
    """Encodes a corpus.

    Each document ends in EOS. If there is only one document, it has no EOS, since a model could not learn from it
    where documents end.

    Args:
        corpus: the corpus.
        tokenizer: the tokenizer.
        note: receives progress messages and the count of dropped characters.
        refuse_unknown: whether characters that are not in the vocabulary are an error. Otherwise they are dropped.

    Returns:
        The tokens. Their ids are a memory map if the corpus has at least MAPPED_BYTES.

    Raises:
        UserError: if characters are not in the vocabulary and `refuse_unknown` is true or no token remains.
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
    """Returns the ids (N,), the documents' lengths and sources (D, 2), and the counts of unknown characters."""
    state, parts = State(0, 0, [], 0, Counter()), [np.empty(0, tokenizer.dtype)]
    for piece, source in _with_sources(corpus):
        parts.append(_advance(state, piece, source, tokenizer))
    ids, documents = np.concatenate(parts), np.array(state.documents, np.int64).reshape(-1, 2)
    return ids, documents, state.unknown


def _with_sources(corpus: Corpus) -> Iterator[tuple[Piece, int]]:
    return ((piece, i) for i, source in enumerate(corpus.sources) for piece in source.pieces())


def _advance(state: State, piece: Piece, source: int, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes one piece and updates the state. Returns the piece's ids, with EOS if it ends a nonempty document."""
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
    """Returns the same as _in_memory from the token file of this text and tokenizer, which it writes if need be."""
    folder = cache_dir() / "tokens"
    make_folder(folder)
    hashes = bytes.fromhex(corpus.fingerprint), hashlib.sha256(json.dumps(tokenizer.to_dict()).encode()).digest()
    path = folder / f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}.tokens"
    with locked(path.with_suffix(".lock"), lambda: note(f"{path}: another process is writing it; waiting")):
        if path.exists():
            with contextlib.suppress(BadFile):
                return _open(path, hashes, tokenizer)
            note(f"{path}: the file is incomplete or does not match; created again")
        _make(path, hashes, corpus, tokenizer, note)
    return _open(path, hashes, tokenizer)


def _open(path: Path, hashes: tuple[bytes, bytes], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, Counter]:
    """Maps a token file. Raises BadFile if it is truncated, of another text or tokenizer, or has ids out of range."""
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
            unknown = Counter(json.loads(file.read()))
        except ValueError:
            raise BadFile(f"{path}: truncated; remove the file") from None
    ids = np.memmap(path, dtype, "r", HEADER.size, (count,))
    if documents[:, 0].sum() != count or (documents < 0).any() or highest >= tokenizer.vocab_size:
        raise BadFile(f"{path}: its document lengths or ids are out of range")
    return ids, documents, unknown


def _highest(file: BinaryIO, dtype: np.dtype, count: int) -> int:
    """Returns the highest of the next `count` ids of an open file.

    It reads the file in blocks instead of through the memory map: pages of a map that were touched count as resident
    memory of the process.
    """
    parts = (np.fromfile(file, dtype, min(1 << 24, count - done)) for done in range(0, count, 1 << 24))
    return max((int(part.max()) for part in parts), default=0)


def _make(path: Path, hashes: tuple[bytes, bytes], corpus: Corpus, tokenizer: Tokenizer, note: Note) -> None:
    """Writes the token file, and resumes from the last state of an interrupted attempt. See the module docstring."""
    part, saved = path.with_suffix(".part"), path.with_suffix(".json")
    width = np.dtype(tokenizer.dtype).itemsize
    remedy = "move the cache to another disk with XDG_CACHE_HOME"
    # An estimate: one token for each byte of the source files.
    require_space(path.parent, corpus.num_bytes * width, f"the tokens of corpus {corpus.name}", remedy)
    state = _load_state(part, saved)
    if state.pieces:
        note(f"{corpus.name}: resuming its encoding after the first {state.count:,} tokens")
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
                sync(file)  # before the state, which must not count ids that are not on the disk
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
    """Returns the saved state of an interrupted attempt, or the initial state if there is none or it is invalid.

    A state counts pieces of text, so it is valid only as long as corpus.PIECE is the same.
    """
    try:
        state = State(**json.loads(saved.read_text("utf-8")))
        state.unknown = Counter(state.unknown)
        if part.stat().st_size >= HEADER.size + state.count:
            return state
    except (OSError, ValueError, TypeError):
        pass
    return State(0, 0, [], 0, Counter())
