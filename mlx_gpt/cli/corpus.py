"""`mlxgpt corpus`: what there is to train on."""

import click

from mlx_gpt.cli.options import echo_json, json_option


@click.group()
def corpus():
    """Named corpora."""


@corpus.command("list")
@json_option
def list_command(as_json):
    """Each corpus with its size, licence and state."""
    from mlx_gpt.data.corpus import list_corpora

    rows = list_corpora()
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        click.echo(
            f"{row['name']:<12} {row['bytes'] / 1e6:>6.2f} MB  {row['license']:<14} {row['state']}\n"
            f"{'':<12} {row['title']}"
        )
