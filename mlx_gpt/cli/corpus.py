"""`mlxgpt corpus`: lists the named corpora, and describes a text."""

from pathlib import Path

import click

from mlx_gpt import data
from mlx_gpt.cli.options import echo_json, json_option, note
from mlx_gpt.config.schema import DataConfig


@click.group()
def corpus_command():
    """List the named corpora, or describe a text."""


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
@json_option
def stats_command(specs, vocab, as_json):
    """Print statistics of a text: its size, its documents, its most common tokens, and a baseline loss.

    The baseline is a model of order 2, which predicts each token from the two tokens before it. Its counts are taken
    from the first nine tenths of each text, and its loss is measured on the last tenths. Large vocabularies have no
    baseline.
    """
    settings, text = DataConfig(corpus=specs, vocab=str(Path(vocab)) if vocab else ""), data.open_corpus(specs)
    for line in text.notes:
        note(line)
    tokenizer = data.make_tokenizer(text, settings, note)
    facts = data.stats.stats(text, tokenizer, data.encode(text, tokenizer, note), settings.val_fraction)
    if as_json:
        echo_json(facts)
        return
    click.echo(
        f"{facts['name']}: {facts['bytes']:,} bytes, {facts['documents']:,} documents, {facts['tokens']:,} tokens, "
        f"a vocabulary of {facts['vocab_size']:,}, {facts['bytes_per_token']} bytes per token"
    )
    common = "  ".join(f"{text!r} {share:.1%}" for text, share in facts["most_common"])
    click.echo(f"most common: {common}")
    if "order2_bits" in facts:
        click.echo(
            f"a model of order 2 has a loss of {facts['order2_nats']} nats ({facts['order2_bits']} bits) per token on "
            f"the last {settings.val_fraction:.0%}; training should reach a lower loss"
        )
