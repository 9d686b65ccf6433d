"""`mlxgpt export` and `mlxgpt push`: a model as other tools load it, and on its way to the hub."""

import contextlib
import re
from pathlib import Path

import click

from mlx_gpt.cli.options import corpus_option, echo_json, json_option, note


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--to", "target", type=click.Choice(["huggingface", "mlx-lm"]), default="huggingface", help="Who loads it."
)
@click.option("--quantize", "bits", type=click.Choice(["8", "4"]), help="For mlx-lm: matrices in so many bits.")
@click.option("--license", "licence", default="other", metavar="NAME", help="Licence of the model, for its card.")
@click.option("--force", is_flag=True, help="Write into DIR though there is something in it.")
@corpus_option
def export(checkpoint, folder, target, bits, licence, force, corpus):
    """Write CHECKPOINT into DIR as transformers or mlx-lm load it, with code, tokenizer and card.

    \b
    mlxgpt export runs/model-l-shakespeare/best.safetensors shakespeare
    mlxgpt export best.safetensors small --to mlx-lm --quantize 4

    The loss before and after quantising is that of the run's own validation text, or of --corpus.
    """
    from mlx_gpt.api import read_checkpoint, tokenizer_of
    from mlx_gpt.errors import UserError
    from mlx_gpt.formats.huggingface.card import card
    from mlx_gpt.formats.huggingface.folder import write_folder, write_weights
    from mlx_gpt.formats.huggingface.quantize import quantize

    if not re.fullmatch(r"[\w.-]+", licence):
        raise UserError(f"--license {licence!r} is no licence's name; as mit or cc-by-4.0")
    if bits and target != "mlx-lm":
        raise UserError("--quantize is MLX's; add --to mlx-lm")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"{folder}: not empty; name another folder, or write into it with --force")
    found = read_checkpoint(checkpoint)
    tokenizer = tokenizer_of(found.header)
    if tokenizer is None:
        raise UserError(
            f"{checkpoint}: holds no tokenizer; give it one by --corpus or --vocab of: mlxgpt convert {checkpoint} FILE"
        )
    weights, extra, notes = found.weights, {}, []
    if bits:
        weights, meant, group = quantize(weights, int(bits))
        extra = {"quantization": {"group_size": group, "bits": int(bits)}}
        notes = [f"{bits} bits a weight, in groups of {group}{_measured(found, meant, corpus)}"]
        note(notes[0])
    evaluations = _evaluations(checkpoint)
    has_curve = bool(evaluations) and _draw(checkpoint, folder / "curve.png", folder)
    text = card(found.header, folder.resolve().name, target, licence, evaluations, has_curve, notes)
    paths = write_folder(folder, found, tokenizer, target, text, extra)
    paths.append(write_weights(folder, weights))
    note(f"{folder}: {len(paths) + has_curve} files, {sum(p.stat().st_size for p in paths):,} bytes, for {target}")


def _measured(checkpoint, meant, corpus) -> str:
    """The losses before and after quantising, in words; nothing where the text is not at hand."""
    import dataclasses

    from mlx_gpt.api import to_run
    from mlx_gpt.cli.evaluate import evaluation
    from mlx_gpt.errors import UserError

    losses, specs = [], corpus or checkpoint.header.config.data.corpus
    note(f"measuring the loss on {', '.join(specs)} before and after")
    try:
        for weights, say in ((checkpoint.weights, note), (meant, lambda line: None)):
            run = to_run(dataclasses.replace(checkpoint, weights=weights))
            losses.append(evaluation(run, specs, "val", 16, say)[0].loss)
    except UserError as error:
        note(f"not measured: {error}; another text can be named with --corpus")
        return ""
    return ": validation loss {:.4f} before, {:.4f} after".format(*losses)


def _evaluations(checkpoint: Path) -> list[dict]:
    """The evaluations of the run that a checkpoint lies in, if it lies in one."""
    from mlx_gpt.watch.metrics import read_metrics

    lines = read_metrics((checkpoint if checkpoint.is_dir() else checkpoint.parent) / "metrics.jsonl")
    return [
        line for line in lines if isinstance(line, dict) and line.get("val_loss") is not None and line.get("tokens")
    ]


def _draw(checkpoint: Path, picture: Path, folder: Path) -> bool:
    """Whether the curve could be drawn."""
    from mlx_gpt.errors import UserError
    from mlx_gpt.files import make_folder
    from mlx_gpt.watch.compare import draw, read_record

    make_folder(folder)
    with contextlib.suppress(UserError):  # without matplotlib the card has a table
        draw(picture, [read_record(checkpoint)])
        return True
    return False


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--yes", is_flag=True, help="Send it. Without this nothing leaves the machine.")
@click.option("--private", is_flag=True, help="Make the repository a private one, if it is new.")
@json_option
def push(folder, repo, yes, private, as_json):
    """Send an exported folder to the Hugging Face hub; without --yes, list what would be sent."""
    from mlx_gpt.errors import UserError
    from mlx_gpt.formats.huggingface.folder import FILES, require_whole

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise UserError(f"{repo!r} is not OWNER/NAME, as ada/shakespeare")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported model in it; make one with: mlxgpt export CHECKPOINT {folder}")
    require_whole(folder)
    files = sorted(p for p in folder.iterdir() if p.name in FILES and p.is_file() and not p.is_symlink())
    left = sorted(p.name for p in folder.iterdir() if p not in files)
    if left:
        note(f"not of an export, and not sent: {', '.join(left)}")
    sizes = {p.name: p.stat().st_size for p in files}
    if yes:
        _send(folder, repo, private, list(sizes))
    if as_json:
        echo_json({"repo": repo, "sent": yes, "files": sizes})
        return
    for path, size in sizes.items():
        click.echo(f"{size:>14,}  {path}")
    done = "sent to" if yes else "would be sent (add --yes) to"
    click.echo(f"{len(sizes)} files, {sum(sizes.values()):,} bytes, {done} {repo}")


def _send(folder: Path, repo: str, private: bool, names: list[str]) -> None:
    from mlx_gpt.errors import UserError

    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("sending needs huggingface_hub: pip install 'mlxgpt[hub]'") from None
    try:
        HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names)
    except Exception as error:  # the library's own, and those of what it sends with
        raise UserError(f"{repo}: not sent: {' '.join(str(error).split())[:300]}") from None
