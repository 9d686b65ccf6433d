"""`mlxgpt tokenizer`: trains, uses, inspects and converts byte-pair vocabularies."""

from collections import Counter
from pathlib import Path

import click

from mlx_gpt import data
from mlx_gpt.cli.options import corpus_option, echo_json, json_option, note
from mlx_gpt.config.schema import DataConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.parse import parse_json, read_text


@click.group()
def tokenizer_command():
    """Train, use, inspect and convert byte-pair vocabularies.

    A vocabulary is a file: a tokenizer.json of mlxgpt or of another library, or a vocab.json of randyGPT.
    """


vocab_option = click.option("--vocab", required=True, metavar="FILE", help="A vocab.json or tokenizer.json.")
force_option = click.option("--force", is_flag=True, help="Overwrite DST.")


@tokenizer_command.command()
@click.argument("dst", type=click.Path(path_type=Path))
@corpus_option
@click.option("--bpe", "size", type=int, default=2000, metavar="N", help="Size of the vocabulary.")
@click.option(
    "--byte-level", is_flag=True, help="Merge bytes within words, as GPT-2 does, instead of characters within lines."
)
@click.option(
    "--rule",
    type=click.Choice(["lines", "randygpt"]),
    help="Rule that chooses the merges of characters; randygpt learns the same vocabulary as randyGPT.  "
    "[default: lines]",
)
@force_option
def train_command(dst, corpus, size, byte_level, rule, force):
    """Train a vocabulary on a corpus and write it to DST.

    If the name of DST begins with "vocab", DST is written in randyGPT's vocab.json format, otherwise in the
    tokenizer.json format. The most frequent pair is merged first. Of equally frequent pairs, the rule lines merges the
    one with the lower ids first, and randygpt the one with the higher ids.
    """
    if rule and byte_level:
        raise UserError(f"--rule {rule} chooses merges of characters, but --byte-level merges bytes; give one of them")
    settings = ({"corpus": corpus} if corpus else {}) | ({"bpe_rule": rule} if rule else {})
    wanted = DataConfig(tokenizer="byte-bpe" if byte_level else "bpe", vocab_size=size, **settings)
    _refuse_existing(dst, force)
    _require_name(dst, wanted.tokenizer)
    known = data.make_tokenizer(data.open_corpus(wanted.corpus), wanted, note)
    note(f"trained on: {', '.join(wanted.corpus)}")
    _write(dst, known)


@tokenizer_command.command()
@click.argument("textfile", metavar="TEXTFILE", type=click.Path(path_type=Path))
@vocab_option
@json_option
def encode_command(textfile, vocab, as_json):
    """Print the token ids of TEXTFILE, of at most 64 MiB; - reads stdin."""
    unknown = Counter()
    ids = data.open_vocab(Path(vocab)).encode(read_text(textfile), unknown).tolist()
    if unknown:
        note(f"{data.name_unknown(unknown)} not in the vocabulary: {unknown.total():,} characters left out")
    if as_json:
        echo_json({"ids": ids})
    else:
        click.echo(" ".join(map(str, ids)))


@tokenizer_command.command()
@click.argument("idsfile", metavar="IDSFILE", type=click.Path(path_type=Path))
@vocab_option
@json_option
def decode_command(idsfile, vocab, as_json):
    """Print the text of the token ids in IDSFILE; - reads stdin.

    IDSFILE has the form that `encode` prints, with or without --json.
    """
    text, known = read_text(idsfile), data.open_vocab(Path(vocab))
    try:
        is_json = text.lstrip().startswith("{")
        ids = parse_json(text, str(idsfile))["ids"] if is_json else [int(word) for word in text.split()]
        ids = list(ids)
    except (ValueError, KeyError, TypeError):
        raise BadFile(f'{idsfile}: does not contain ids; give whole numbers, or {{"ids": [...]}}') from None
    for i in ids:
        if type(i) is not int or not 0 <= i < known.vocab_size:
            raise BadFile(f"{idsfile}: id {i!r} is not in the vocabulary, whose ids are 0 to {known.vocab_size - 1}")
    if as_json:
        echo_json({"text": known.decode(ids)})
    else:
        click.echo(known.decode(ids), nl=False)


@tokenizer_command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect_command(file, as_json):
    """Print the kind, the size, the special tokens and the longest tokens of a vocabulary."""
    known = data.open_vocab(file)
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


@tokenizer_command.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@force_option
def convert_command(src, dst, force):
    """Convert between randyGPT's vocab.json and tokenizer.json.

    If the name of DST begins with "vocab", DST is written in the vocab.json format, otherwise in the tokenizer.json
    format.
    """
    _refuse_existing(dst, force)
    _write(dst, data.open_vocab(src))


def _refuse_existing(dst: Path, force: bool) -> None:
    if dst.is_dir():
        raise UserError(f"{dst}: is a folder; name a file in it")
    if not dst.parent.is_dir():
        raise UserError(f"{dst.parent}: no such folder; create it, or name another folder")
    if dst.exists() and not force:
        raise UserError(f"{dst}: already exists; name another file, or overwrite it with --force")


def _require_name(dst: Path, kind: str) -> None:
    """Raises UserError if the name of `dst` asks for a vocab.json, whose format has only merges of characters."""
    if dst.name.startswith("vocab") and kind != "bpe":
        raise UserError(f"{dst}: a vocab.json cannot hold a vocabulary of kind {kind}; name it tokenizer.json")


def _write(dst: Path, known) -> None:
    _require_name(dst, known.kind)
    text = known.to_vocab_json() if dst.name.startswith("vocab") else data.tokenizer_json(known)
    write_atomic(dst, [text.encode()])
    note(f"{dst}: {known.kind}, {known.vocab_size:,} ids, {dst.stat().st_size:,} bytes")
