"""`mlxgpt export` writes a model for other libraries. `mlxgpt push` sends the result to the Hugging Face hub."""

from pathlib import Path

import click

from mlx_gpt import api
from mlx_gpt.cli.options import corpus_option, echo_json, json_option, note


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(["huggingface", "mlx-lm"]),
    default="huggingface",
    help="Library that will load the model.",
)
@click.option(
    "--quantize",
    "bits",
    type=click.Choice(["8", "4"]),
    help="Quantize the matrices to this many bits per weight; for mlx-lm only.",
)
# click derives the environment variable of an option from its parameter name. The spelling "licence" keeps the variable
# MLXGPT_EXPORT_LICENCE of mlxgpt 0.1.0.
@click.option("--license", "licence", default="other", metavar="NAME", help="License of the model, for the model card.")
@click.option("--force", is_flag=True, help="Write into DIR even if it is not empty.")
@corpus_option
def export_command(checkpoint, folder, target, bits, licence, force, corpus):
    """Export CHECKPOINT to the folder DIR for transformers or mlx-lm, with code, tokenizer and model card.

    \b
    mlxgpt export runs/model-l-shakespeare/best.safetensors shakespeare
    mlxgpt export best.safetensors small --to mlx-lm --quantize 4

    With --quantize, the validation loss is measured before and after quantizing. Its text is the corpus of the run, or
    --corpus.
    """
    quantize = int(bits) if bits else None
    paths = api.export(
        checkpoint, folder, target, quantize=quantize, license=licence, corpus=corpus, force=force, note=note
    )
    note(f"{folder}: {len(paths)} files, {sum(p.stat().st_size for p in paths):,} bytes, for {target}")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--yes", is_flag=True, help="Send the files. Without --yes nothing is sent.")
@click.option("--private", is_flag=True, help="If the repository does not exist, create it as a private one.")
@json_option
def push_command(folder, repo, yes, private, as_json):
    """Send an exported folder to the Hugging Face hub; without --yes, list what would be sent."""
    sizes = api.push(folder, repo, yes=yes, private=private, note=note)
    if as_json:
        echo_json({"repo": repo, "sent": yes, "files": sizes})
        return
    for path, size in sizes.items():
        click.echo(f"{size:>14,}  {path}")
    done = "sent to" if yes else "would be sent (add --yes) to"
    click.echo(f"{len(sizes)} files, {sum(sizes.values()):,} bytes, {done} {repo}")
