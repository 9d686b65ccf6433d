"""`mlxgpt export` writes a model for other programs. `mlxgpt push` sends the result to the Hugging Face hub."""

from pathlib import Path

import click

from mlx_gpt import api
from mlx_gpt.cli.options import corpus_option, echo_json, json_option, note
from mlx_gpt.errors import UserError

# The program that loads each target, and the command that writes it.
TARGETS = {
    "huggingface": ("transformers", "mlxgpt export {checkpoint} DIR"),
    "mlx-lm": ("mlx-lm", "mlxgpt export {checkpoint} DIR --to mlx-lm"),
    "gguf": ("llama.cpp", "mlxgpt export {checkpoint} OUT.gguf"),
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("destination", required=False, metavar="[DIR|OUT.gguf]", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(list(TARGETS)),
    help="Program that will load the model: transformers (huggingface), mlx-lm, or llama.cpp (gguf).  [default: gguf "
    "for a name that ends in .gguf, otherwise huggingface]",
)
@click.option(
    "--quantize",
    "bits",
    type=click.Choice(["8", "4"]),
    help="Quantize the matrices to this many bits per weight; for mlx-lm only.",
)
@click.option(
    "--packed",
    is_flag=True,
    help="Store ternary matrices in 2 bits in a folder. Without it, their values are stored in float32.",
)
@click.option(
    "--gguf-type",
    type=click.Choice(["F32", "F16", "Q8_0", "TQ2_0", "TQ1_0", "Q2_0", "Q4_0"], case_sensitive=False),
    help="Type of the matrices in a GGUF file. The last four are for ternary networks, which they hold exactly.  "
    "[default: F32, which is exact; for ternary networks the first of TQ2_0, Q2_0, Q4_0 and F32 that is possible]",
)
# click derives the environment variable of an option from its parameter name. The spelling "licence" keeps the variable
# MLXGPT_EXPORT_LICENCE of mlxgpt 0.1.0.
@click.option("--license", "licence", default="other", metavar="NAME", help="License of the model, for the model card.")
@click.option("--force", is_flag=True, help="Write into DIR even if it is not empty, or overwrite OUT.gguf.")
@corpus_option
def export_command(checkpoint, destination, target, bits, packed, gguf_type, licence, force, corpus):
    """Export CHECKPOINT for transformers, mlx-lm or llama.cpp; without a destination, list what is possible.

    \b
    mlxgpt export runs/model-l-shakespeare/best.safetensors
    mlxgpt export runs/model-l-shakespeare/best.safetensors shakespeare
    mlxgpt export best.safetensors small --to mlx-lm --quantize 4
    mlxgpt export best.safetensors shakespeare.gguf

    A folder for transformers or mlx-lm has weights, tokenizer and model card. It also has the code of the network,
    unless the network is Llama's, as in the preset llama-s. A GGUF file holds only Llama's network. Of a ternary
    network, the trits and the scales of its forward pass are exported, or their products.

    With --quantize, the validation loss is measured before and after quantizing. Its text is the corpus of the run, or
    --corpus.
    """
    if destination is None:
        if given := [
            name
            for name, value in (
                ("--to", target),
                ("--quantize", bits),
                ("--packed", packed),
                ("--gguf-type", gguf_type),
            )
            if value
        ]:
            raise UserError(f"{given[0]} needs a destination; name a folder, or a file such as model.gguf")
        _list_targets(checkpoint)
        return
    if str(destination) == ".":
        raise UserError("the destination is the current folder; name another folder, or a file such as model.gguf")
    quantize = int(bits) if bits else None
    paths = api.export(
        checkpoint,
        destination,
        target,
        quantize=quantize,
        packed=packed,
        gguf_type=gguf_type,
        license=licence,
        corpus=corpus,
        force=force,
        note=note,
    )
    files = f"{len(paths)} files" if len(paths) > 1 else "1 file"
    note(f"{destination}: {files}, {sum(p.stat().st_size for p in paths):,} bytes")


def _list_targets(checkpoint: Path) -> None:
    """Prints the command for each target that can hold the network, and for the others the reason why not."""
    for target, reason in api.targets(checkpoint).items():
        program, command = TARGETS[target]
        click.echo(f"{program:<14}{f'no: {reason}' if reason else command.format(checkpoint=checkpoint)}")


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
