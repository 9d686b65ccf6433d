"""Encodes a corpus to token ids, in memory or, if the corpus is large, in a token file that is memory-mapped.

A token file lies in the user's cache. Its name is derived from the SHA-256 of the text (Corpus.fingerprint) and of the
tokenizer, and from the division of the documents into sources (Corpus.division). It is written once and reused. Its
layout is that of data/tokenfile.py.
"""

import contextlib
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data import idfiles, tokenfile
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.corpus import Corpus, Piece, Source
from mlx_gpt.data.tokenfile import Encoded, State
from mlx_gpt.data.tokenizer import CharTokenizer, Tokenizer, alphabet, name_unknown
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.vocabularies import open_vocab
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import locked, make_folder, remove_abandoned, require_space
from mlx_gpt.paths import cache_dir

MAPPED_BYTES = 16 << 20  # corpora of at least this size are encoded into a file
MAX_TRAINING_BYTES = 8 << 20  # approximate limit of the text that merges are trained on; training takes 50x the memory
Note = Callable[[str], None]  # shows a message to the user


def make_tokenizer(corpus: Corpus, data: DataConfig, note: Note) -> Tokenizer:
    """Returns the tokenizer that the settings request: read from the file `data.vocab`, or trained on the corpus.

    With `data.fim_rate`, the special tokens for fill-in-the-middle are added if the vocabulary does not have them.

    The characters of a trained vocabulary are those of the whole corpus. Its merges are trained on every k-th piece of
    the text. k is the smallest number for which these pieces have about MAX_TRAINING_BYTES or less.

    Args:
        corpus: the text to train on. It is not read if `data.vocab` is set.
        data: the settings `vocab`, `tokenizer`, `vocab_size`, `bpe_rule` and `fim_rate`.
        note: receives a message about the trained vocabulary.

    Raises:
        UserError: if the vocabulary file does not exist, or if `data.vocab_size` is too small.
        BadFile: if the vocabulary file or the corpus cannot be read.
    """
    tokenizer = _read_or_trained(corpus, data, note)
    if data.fim_rate and tokenizer.fim_ids is None:
        tokenizer = tokenizer.with_fim()
        note(f"added three special tokens for fill-in-the-middle, the ids {', '.join(map(str, tokenizer.fim_ids))}")
    return tokenizer


def _read_or_trained(corpus: Corpus, data: DataConfig, note: Note) -> Tokenizer:
    """Returns the tokenizer of make_tokenizer() before special tokens are added."""
    if data.vocab:
        return open_vocab(Path(data.vocab).expanduser())
    characters = set() if data.tokenizer == "byte-bpe" else alphabet(corpus.texts())  # all bytes are its alphabet
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
            the corpus has no other characters, or if it holds ids of another tokenizer.
        BadFile: if the corpus cannot be read.
        OutOfRoom: if the disk has no space for the token file.
    """
    for source in corpus.sources:
        if source.ids and source.ids.tokenizer != tokenizer.digest():
            raise UserError(
                f"corpus {source.name}: its ids are of another tokenizer; give the vocabulary that it was imported "
                "with, as --vocab tokenizer.json"
            )
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


def import_ids(path: Path, dtype: str, tokenizer: Tokenizer, out: Path, note: Note) -> Encoded:
    """Writes a raw file of token ids as a token file, which is a corpus.

    Args:
        path: the raw file, see data/idfiles.py.
        dtype: the type of its ids, "uint16" or "uint32".
        tokenizer: the tokenizer of the ids.
        out: the token file. Its name ends in idfiles.SUFFIX.
        note: receives progress messages.

    Returns:
        The content of the token file.

    Raises:
        UserError: if `out` exists or has another suffix. For other errors, see idfiles.raw_ids.
        BadFile: if the file has no document of one id or more.
    """
    if out.suffix != idfiles.SUFFIX or out.exists():
        reason = "exists already; remove it, or" if out.suffix == idfiles.SUFFIX else "is not a name for a token file;"
        raise UserError(f"{out}: {reason} give --out NAME{idfiles.SUFFIX}")
    ids = idfiles.raw_ids(path, dtype, tokenizer)
    corpus = Corpus(path.name, (Source(str(path), 1.0, ids.num_bytes, ids=ids),))
    hashes = bytes.fromhex(corpus.fingerprint), tokenizer.digest()
    make_folder(out.parent)
    _make(out, hashes, corpus, tokenizer, note)
    return tokenfile.read(out, hashes, tokenizer.dtype, tokenizer.vocab_size)


def _in_memory(corpus: Corpus, tokenizer: Tokenizer) -> Encoded:
    """Encodes a corpus in memory. The ids are of the type `tokenizer.dtype`."""
    state, parts = State(), [np.empty(0, tokenizer.dtype)]
    for piece, source in _with_sources(corpus):
        parts.append(_advance(state, piece, source, tokenizer))
    return Encoded(np.concatenate(parts), np.array(state.documents, np.int64).reshape(-1, 2), state.unknown)


def _with_sources(corpus: Corpus) -> Iterator[tuple[Piece, int]]:
    """Yields the pieces of all sources in order, each with the index of its source."""
    return ((piece, i) for i, source in enumerate(corpus.sources) for piece in source.pieces())


def _advance(state: State, piece: Piece, source: int, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes one piece of text and adds it to the state.

    Returns:
        The ids of the piece, followed by EOS if the piece ends a document. A document without any id gets no EOS and is
        not counted as a document.
    """
    is_text = isinstance(piece.text, str)
    ids = tokenizer.encode(piece.text, state.unknown) if is_text else piece.text.astype(tokenizer.dtype)
    state.length += len(ids)
    if piece.ends and state.length:
        ids = np.append(ids, np.array([tokenizer.eos_id], tokenizer.dtype))
        state.documents.append([state.length + 1, source])
        state.length = 0
    state.pieces += 1
    state.count += len(ids)
    return ids


def _mapped(corpus: Corpus, tokenizer: Tokenizer, note: Note) -> Encoded:
    """Returns the same as _in_memory, but the ids are a memory map of the token file.

    The token file of this text, division and tokenizer is written first if it does not exist or is damaged.

    Raises:
        BadFile: if the file is damaged right after it was written.
    """
    folder = cache_dir() / "tokens"
    make_folder(folder)
    remove_abandoned(folder)
    hashes = bytes.fromhex(corpus.fingerprint), tokenizer.digest()
    # The text determines the number of all documents. Without the last source, a single source adds nothing to the key.
    division = np.array(corpus.division[:-1], "<i8").tobytes()
    path = folder / f"{hashlib.sha256(b''.join([*hashes, division])).hexdigest()[:32]}.tokens"
    with locked(path.with_suffix(".lock"), lambda: note(f"{path}: another process is writing it; waiting")):
        if path.exists():
            try:
                return tokenfile.read(path, hashes, tokenizer.dtype, tokenizer.vocab_size)
            except BadFile as error:
                note(f"{error}; the text is encoded again")
        _make(path, hashes, corpus, tokenizer, note)
    try:
        return tokenfile.read(path, hashes, tokenizer.dtype, tokenizer.vocab_size)
    except BadFile as error:
        raise BadFile(f"{error}, although it was just written; move the cache with XDG_CACHE_HOME") from None


def _make(path: Path, hashes: tuple[bytes, bytes], corpus: Corpus, tokenizer: Tokenizer, note: Note) -> None:
    """Writes the token file. Resumes an interrupted attempt at its last state."""
    remedy = "move the cache to another disk with XDG_CACHE_HOME"
    # The number of tokens of a text is not known yet. The estimate is one token for each byte of the source files.
    width = np.dtype(tokenizer.dtype).itemsize
    count = sum(source.ids.count if source.ids else source.num_bytes for source in corpus.sources)
    require_space(path.parent, count * width, f"the tokens of corpus {corpus.name}", remedy)
    with contextlib.closing(tokenfile.Writer(path, hashes, tokenizer.dtype)) as file:
        if file.fault:
            note(f"{file.fault}; the interrupted encoding starts again")
        if file.state.pieces:
            note(f"{corpus.name}: resuming its encoding, of which {file.state.count:,} tokens are done")
        else:
            what = "ids" if any(source.ids for source in corpus.sources) else "text"
            note(f"{corpus.name}: {corpus.num_bytes / 1e6:.0f} MB of {what} are encoded to {path}")
        for piece, source in itertools.islice(_with_sources(corpus), file.state.pieces, None):
            file.write(_advance(file.state, piece, source, tokenizer))
        file.finish()
