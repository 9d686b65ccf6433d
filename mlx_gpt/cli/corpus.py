"""`mlxgpt corpus`: lists the named corpora, describes a text, and imports token ids of other programs."""

from pathlib import Path

import click

from mlx_gpt import data
from mlx_gpt.cli.options import echo_json, json_option, note
from mlx_gpt.config.schema import DataConfig


@click.group()
def corpus_command():
    """List the named corpora, describe a text, or import token ids of other programs."""


@corpus_command.command("list")
@json_option
def list_command(as_json):
    """List the named corpora, each with its size, license and state."""
    rows = data.list_corpora()
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        click.echo(
            f"{row['name']:<12} {row['bytes'] / 1e6:>6.2f} MB  {row['license']:<14} {row['state']}\n"
            f"{'':<12} {row['title']}"
        )


@corpus_command.command("stats")
@click.argument("specs", nargs=-1, required=True, metavar="NAME|PATH...")
@click.option(
    "--vocab", metavar="FILE", help="Count tokens of this vocab.json or tokenizer.json instead of characters."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the passages.")
@json_option
def stats_command(specs, vocab, seed, as_json):
    """Print statistics of a text: its size, documents, most common tokens, duplicates, passages, and a baseline loss.

    The baseline is a model of order 2, which predicts each token from the two tokens before it. Its counts are taken
    from the first nine tenths of each text, and its loss is measured on the last tenths. Large vocabularies have no
    baseline.
    """
    settings, text = DataConfig(corpus=specs, vocab=str(Path(vocab)) if vocab else ""), data.open_corpus(specs)
    for line in text.notes:
        note(line)
    tokenizer = data.make_tokenizer(text, settings, note)
    facts = data.stats.stats(text, tokenizer, data.encode(text, tokenizer, note), settings.val_fraction, seed=seed)
    if as_json:
        echo_json(facts)
        return
    click.echo(
        f"{facts['name']}: {facts['bytes']:,} bytes, {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
        f"a vocabulary of {facts['vocab_size']:,}, {facts['bytes_per_token']} bytes per token"
    )
    common = "  ".join(f"{text!r} {share:.1%}" for text, share in facts["most_common"])
    click.echo(f"most common: {common}")
    click.echo(f"ids that never occur: {facts['unused']:,} of {facts['vocab_size']:,}")
    lengths = facts["lengths"]
    click.echo(
        f"tokens per document: {lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,}; the longest "
        f"tenth of the documents has {lengths['longest_tenth']:.1%} of the tokens"
    )
    click.echo(
        f"exact duplicates: {facts['duplicate_documents']:,} documents, and {facts['duplicate_windows']:,} of "
        f"{facts['windows']:,} windows of {data.stats.WINDOW} tokens"
    )
    for passage in facts["passages"]:
        click.echo(f"passage: {passage!r}")
    if "order2_bits" in facts:
        click.echo(
            f"a model of order 2 has a loss of {facts['order2_nats']} nats ({facts['order2_bits']} bits) per token on "
            f"the last {settings.val_fraction:.0%}; training should reach a lower loss"
        )


@corpus_command.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["uint16", "uint32"]), required=True, help="Type of the ids, little-endian.")
@click.option("--vocab", required=True, metavar="FILE", help="The vocab.json or tokenizer.json that made the ids.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="NAME.tokens", help="The file to write.  [default: FILE.tokens]"
)
@json_option
def import_command(file, dtype, vocab, out, as_json):
    """Make a corpus of FILE, which holds token ids of another program without a header.

    \b
    mlxgpt corpus import train.bin --dtype uint16 --vocab tokenizer.json
    mlxgpt train --corpus train.tokens --vocab tokenizer.json
    """
    out = out or file.with_suffix(".tokens")
    made = data.import_ids(file, dtype, data.open_vocab(Path(vocab)), out, note)
    if as_json:
        echo_json({"file": out, "tokens": len(made.ids), "documents": len(made.documents)})
    else:
        click.echo(f"{out}: {len(made.ids):,} tokens in {len(made.documents):,} documents")
