"""`export` writes a model for other libraries. `push` uploads it to the Hugging Face hub."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_gpt.api.evaluation import evaluate
from mlx_gpt.checkpoint.store import Checkpoint, Tensors
from mlx_gpt.errors import UserError
from mlx_gpt.files import make_folder
from mlx_gpt.formats import FORMATS
from mlx_gpt.formats.huggingface.card import card
from mlx_gpt.formats.huggingface.folder import FILES, TARGETS, require_whole, write_folder, write_weights
from mlx_gpt.formats.huggingface.quantize import BITS
from mlx_gpt.formats.huggingface.quantize import quantize as quantize_weights
from mlx_gpt.run.loading import read_checkpoint, to_run, tokenizer_of
from mlx_gpt.run.request import Note, ignore
from mlx_gpt.watch.compare import draw, read_record
from mlx_gpt.watch.metrics import has_numbers, read_metrics


def export(
    src: str | Path,
    folder: str | Path,
    target: str = "huggingface",
    *,
    quantize: int | None = None,
    license: str = "other",
    corpus: str | Path | Sequence[str | Path] | None = None,
    force: bool = False,
    note: Note = ignore,
) -> list[Path]:
    """Writes a folder that transformers or mlx-lm can load, with code, weights, tokenizer and model card.

    Args:
        src: A checkpoint of any format, or a run folder. If src is a run folder or in one, the model card shows the
            run's validation losses, as a curve or a table.
        folder: The folder to write. It is created if it does not exist.
        target: "huggingface" for transformers, or "mlx-lm".
        quantize: 8 or 4, the bits per weight of quantized matrices; for mlx-lm only. None does not quantize.
        license: Name of the model's license, for the model card.
        corpus: The text on whose validation split the loss before and after quantizing is measured. [default: the
            checkpoint's `data.corpus`]
        force: Whether to write into a folder that is not empty.
        note: Called with each message for the user, one line of text.

    Returns:
        The paths of the files written.

    Raises:
        UserError: An argument is not allowed, the checkpoint has no tokenizer, or the target has no code for its
            network.
        BadFile: src is corrupt, or of an unknown format.
    """
    src, folder = Path(src), Path(folder)
    _require_arguments(folder, target, quantize, license, force)
    checkpoint = read_checkpoint(src)
    tokenizer = tokenizer_of(src, checkpoint.header)
    if tokenizer is None:
        raise UserError(
            f"{src}: the checkpoint has no tokenizer; add one with --corpus or --vocab of: mlxgpt convert {src} FILE"
        )
    if reason := FORMATS[target].refuses(checkpoint.header.config):
        raise UserError(reason)
    weights, extra, notes = checkpoint.weights, {}, []
    if quantize:
        weights, dequantized, group = quantize_weights(weights, quantize)
        extra = {"quantization": {"group_size": group, "bits": quantize}}
        losses = _losses(src, checkpoint, dequantized, corpus, note)
        notes = [f"{quantize} bits per weight, in groups of {group}{losses}"]
        note(notes[0])
    evaluations = _evaluations(src)
    picture = _curve(src, folder) if evaluations else []
    text = card(checkpoint.header, folder.resolve().name, target, license, evaluations, bool(picture), notes)
    paths = write_folder(folder, checkpoint, tokenizer, target, text, extra)
    return [*paths, write_weights(folder, weights), *picture]


def _require_arguments(folder: Path, target: str, quantize: int | None, license: str, force: bool) -> None:
    if target not in TARGETS:
        raise UserError(f"target={target!r} is not allowed; choose from {', '.join(TARGETS)}")
    if quantize not in (None, *BITS):
        raise UserError(f"quantize={quantize!r} is not allowed; choose from {', '.join(map(str, BITS))}")
    if not re.fullmatch(r"[\w.-]+", license):
        raise UserError(f"--license {license!r} is not the name of a license; give one such as mit or cc-by-4.0")
    if quantize and target != "mlx-lm":
        raise UserError(f"--quantize {quantize} is only supported for mlx-lm, not for {target}; add --to mlx-lm")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"{folder}: is not empty; name another folder, or write into it with --force")


def _losses(
    src: Path,
    checkpoint: Checkpoint,
    dequantized: Tensors,
    corpus: str | Path | Sequence[str | Path] | None,
    note: Note,
) -> str:
    """Measures the validation losses of the original and of the dequantized weights on `corpus` (see export()).

    Returns:
        Both losses as a text that begins with a colon, or an empty string if the loss cannot be measured.
    """
    losses = []
    try:
        # The corpus is read twice. The second evaluation would repeat its messages, so they are ignored.
        for weights, say in ((checkpoint.weights, note), (dequantized, ignore)):
            run = to_run(src, dataclasses.replace(checkpoint, weights=weights))
            losses.append(evaluate(run, corpus, note=say).loss)
    except UserError as error:
        note(f"the loss before and after quantizing was not measured: {error}")
        return ""
    return ": validation loss {:.4f} before, {:.4f} after".format(*losses)


def _evaluations(src: Path) -> list[dict]:
    """Returns the evaluations in the metrics.jsonl of the run folder, or of the folder of a checkpoint.

    Evaluations before the first update, or without the numbers that the model card shows, are left out. The list is
    empty if there is no file.
    """
    lines = read_metrics((src if src.is_dir() else src.parent) / "metrics.jsonl")
    return [line for line in lines if has_numbers(line, ("step", "tokens", "val_loss", "val_ppl")) and line["tokens"]]


def _curve(src: Path, folder: Path) -> list[Path]:
    """Draws the loss curve of the run to folder/curve.png.

    Returns:
        A list of its path. The list is empty if it cannot be drawn, for example because matplotlib is not installed.
        The model card then has a table instead.
    """
    make_folder(folder)
    with contextlib.suppress(UserError):
        draw(folder / "curve.png", [read_record(src)])
        return [folder / "curve.png"]
    return []


def push(
    folder: str | Path, repo: str, *, yes: bool = False, private: bool = False, note: Note = ignore
) -> dict[str, int]:
    """Uploads an exported folder to the Hugging Face hub.

    Args:
        folder: A folder that `export` wrote. Files in it that do not belong to an export are not uploaded.
        repo: The repository, as OWNER/NAME. It is created if it does not exist.
        yes: Whether the files are uploaded. If False, they are only checked and listed.
        private: Whether a repository that is created is private.
        note: Called with each message for the user, one line of text.

    Returns:
        A dict from the name of each file that was uploaded, or would be, to its size in bytes.

    Raises:
        UserError: `repo` is not of the form OWNER/NAME, the folder has no exported model, huggingface_hub is not
            installed, or the upload failed.
        BadFile: A file of the folder is corrupt.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise UserError(f"{repo!r} is not a repository; give OWNER/NAME, such as ada/shakespeare")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no exported model; create one with: mlxgpt export CHECKPOINT {folder}")
    require_whole(folder)
    files = sorted(p for p in folder.iterdir() if p.name in FILES and p.is_file() and not p.is_symlink())
    others = sorted(p.name for p in folder.iterdir() if p not in files)
    if others:
        note(f"not part of an export, not sent: {', '.join(others)}")
    sizes = {p.name: p.stat().st_size for p in files}
    if yes:
        _send(folder, repo, private, list(sizes))
    return sizes


def _send(folder: Path, repo: str, private: bool, names: list[str]) -> None:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError("sending needs huggingface_hub; install it with: pip install 'mlxgpt[hub]'") from None
    try:
        HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names)
    except Exception as error:  # huggingface_hub raises its own errors and those of its HTTP library
        raise UserError(f"{repo}: the files were not sent: {' '.join(str(error).split())[:300]}") from None
