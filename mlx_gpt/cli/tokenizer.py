"""`mlxgpt tokenizer`: vocabularies of byte-pair encodings, trained, used, looked into and translated."""

import json
import sys
from pathlib import Path

import click

from mlx_gpt.cli.options import corpus_option, echo_json, json_option, note


@click.group()
def tokenizer():
    """Byte-pair vocabularies: ours and the libraries' tokenizer.json, and randyGPT's vocab.json."""


vocab_option = click.option("--vocab", required=True, metavar="FILE", help="A vocab.json or tokenizer.json.")
force_option = click.option("--force", is_flag=True, help="Overwrite DST.")


@tokenizer.command()
@click.argument("dst", type=click.Path(path_type=Path))
@corpus_option
@click.option("--bpe", "size", type=int, default=2000, metavar="N", help="Ids in all.")
@click.option("--byte-level", is_flag=True, help="Merge bytes within words, as GPT-2, and not characters within lines.")
@force_option
def train(dst, corpus, size, byte_level, force):
    """Train a vocabulary on a corpus into DST: a vocab.json if its name begins with vocab, else a tokenizer.json.

    The most frequent pair is merged first; of equally frequent ones, that of the lower ids.
    """
    from mlx_gpt.config.schema import DataConfig
    from mlx_gpt.data.corpus import open_corpus
    from mlx_gpt.data.encoding import make_tokenizer

    settings = {"corpus": corpus} if corpus else {}
    data = DataConfig(tokenizer="byte-bpe" if byte_level else "bpe", vocab_size=size, **settings)
    _refuse_existing(dst, force)
    _require_name(dst, data.tokenizer)
    known = make_tokenizer(open_corpus(data.corpus), data, note)
    note(f"its text: {', '.join(data.corpus)}")
    _write(dst, known)


@tokenizer.command()
@click.argument("textfile", metavar="TEXTFILE", type=click.Path(path_type=Path))
@vocab_option
@json_option
def encode(textfile, vocab, as_json):
    """Print the ids of a text file; - reads stdin."""
    from collections import Counter

    from mlx_gpt.data.bpe import open_vocab
    from mlx_gpt.data.tokenizer import name_unknown

    unknown = Counter()
    ids = open_vocab(Path(vocab)).encode(_read(textfile), unknown).tolist()
    if unknown:
        note(f"{name_unknown(unknown)} not in the vocabulary: {unknown.total():,} characters left out")
    if as_json:
        echo_json({"ids": ids})
    else:
        click.echo(" ".join(map(str, ids)))


@tokenizer.command()
@click.argument("idsfile", metavar="IDSFILE", type=click.Path(path_type=Path))
@vocab_option
@json_option
def decode(idsfile, vocab, as_json):
    """Print the text of ids, as `encode` prints them; - reads stdin."""
    from mlx_gpt.data.bpe import open_vocab
    from mlx_gpt.errors import BadFile

    text, known = _read(idsfile), open_vocab(Path(vocab))
    try:
        ids = json.loads(text)["ids"] if text.lstrip().startswith("{") else [int(word) for word in text.split()]
    except (ValueError, KeyError, TypeError):
        raise BadFile(f'{idsfile}: not ids: whole numbers, or {{"ids": [...]}}') from None
    for i in ids:
        if type(i) is not int or not 0 <= i < known.vocab_size:
            raise BadFile(f"{idsfile}: id {i!r}; the vocabulary has 0 to {known.vocab_size - 1}")
    if as_json:
        echo_json({"text": known.decode(ids)})
    else:
        click.echo(known.decode(ids), nl=False)


@tokenizer.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file, as_json):
    """Kind, size, specials and longest pieces of a vocabulary."""
    from mlx_gpt.data.bpe import open_vocab

    known = open_vocab(file)
    longest = sorted(known.pieces, key=len, reverse=True)[:10]
    facts = {
        "file": str(file),
        "kind": known.kind,
        "vocab_size": known.vocab_size,
        "bos_id": known.bos_id,
        "eos_id": known.eos_id,
        "bytes_per_piece": round(float(known.token_bytes().mean()), 2),
        "longest": [piece.decode("utf-8", "replace") for piece in longest],
    }
    if as_json:
        echo_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:<16} {', '.join(map(repr, value)) if isinstance(value, list) else value}")


@tokenizer.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@force_option
def convert(src, dst, force):
    """Translate between randyGPT's vocab.json and tokenizer.json.

    The name of DST says which: a vocab.json, if it begins so, else a tokenizer.json.
    """
    from mlx_gpt.data.bpe import open_vocab

    _refuse_existing(dst, force)
    _write(dst, open_vocab(src))


def _refuse_existing(dst: Path, force: bool) -> None:
    from mlx_gpt.errors import UserError

    if dst.is_dir():
        raise UserError(f"{dst}: a folder; name a file in it")
    if not dst.parent.is_dir():
        raise UserError(f"{dst.parent}: no such folder; make it, or name another one")
    if dst.exists() and not force:
        raise UserError(f"{dst}: already there; name another file, or overwrite it with --force")


def _require_name(dst: Path, kind: str) -> None:
    from mlx_gpt.errors import UserError

    if dst.name.startswith("vocab") and kind != "bpe":
        raise UserError(f"{dst}: a vocab.json holds characters, not bytes; name it tokenizer.json")


def _write(dst: Path, known) -> None:
    from mlx_gpt.files import write_atomic

    _require_name(dst, known.kind)
    text = known.to_vocab_json() if dst.name.startswith("vocab") else known.to_json()
    write_atomic(dst, [text.encode()])
    note(f"{dst}: {known.kind}, {known.vocab_size:,} ids, {dst.stat().st_size:,} bytes")


def _read(path: Path) -> str:
    from mlx_gpt.errors import BadFile, UserError

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: byte {error.start} is 0x{data[error.start]:02x}, not UTF-8 text") from None
