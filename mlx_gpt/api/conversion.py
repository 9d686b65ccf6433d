"""`convert`: converts checkpoints between formats."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.errors import UserError
from mlx_gpt.formats import FORMATS
from mlx_gpt.formats.rgpt import has_moments
from mlx_gpt.model.packing import as_packed
from mlx_gpt.run.imported import with_recipe
from mlx_gpt.run.loading import read_checkpoint, sizes_of, with_text
from mlx_gpt.run.request import Note, ignore


def convert(
    src: str | Path,
    dst: str | Path,
    format: str | None = None,
    *,
    preset: str | None = None,
    n_embd: int | None = None,
    n_head: int | None = None,
    n_layer: int | None = None,
    block_size: int | None = None,
    corpus: str | Path | Sequence[str | Path] | None = None,
    vocab: str | Path | None = None,
    packed: bool = False,
    force: bool = False,
    note: Note = ignore,
) -> str:
    """Converts a checkpoint between safetensors, RGPT0001, RGPT0002, RGPT0003 and GGUF.

    Args:
        src: A checkpoint of any format, a run folder, or an exported folder.
        dst: The file to write.
        format: safetensors, rgpt0001, rgpt0002, rgpt0003 or gguf. [default: safetensors; if dst ends in .gguf, gguf; if
            dst ends in .bin, rgpt0003, or rgpt0002 without AdamW's moments]
        preset, n_embd, n_head, n_layer, block_size, corpus, vocab: As for `load`; an RGPT file does not contain them.
        packed: Whether the matrices of a ternary network are stored in 2 bits per weight, for safetensors only. The
            optimizer's state is left out. The file can be used, but not trained.
        force: Whether dst is overwritten if it exists.
        note: Called with each message for the user, one line of text.

    Returns:
        The format that was written: safetensors, rgpt0001, rgpt0002, rgpt0003 or gguf.

    Raises:
        UserError: src does not exist, dst exists, or the format cannot represent the checkpoint.
        BadFile: src is corrupt, or of an unknown format.
        Mismatch: The network or the vocabulary of src differs from the arguments.
    """
    src, dst = Path(src), Path(dst)
    files = {name: row for name, row in FORMATS.items() if not row.is_folder}
    if format not in (None, *files):
        raise UserError(f"format={format!r} is not allowed; choose from {', '.join(files)}")
    _require_free(src, dst, force)
    sizes = sizes_of(n_embd, n_head, n_layer, block_size)
    checkpoint = read_checkpoint(src, preset, sizes)
    if not format and dst.suffix == ".bin":
        format = "rgpt0003" if has_moments(checkpoint) else "rgpt0002"
    format = format or ("gguf" if dst.suffix == ".gguf" else "safetensors")
    if packed:
        checkpoint = _packed(checkpoint, format)
    if format == "safetensors":
        checkpoint = with_recipe(checkpoint, note)
    checkpoint = with_text(src, checkpoint, corpus, vocab)
    tokenizer = checkpoint.header.tokenizer
    files[format].write(checkpoint, dst)
    if format == "safetensors" and not tokenizer:
        note(f"{dst} has no tokenizer; add the characters of a text with --corpus, or a vocabulary with --vocab")
    if format.startswith("rgpt") and tokenizer and tokenizer["kind"] != "char":
        note(f"{dst} does not contain the vocabulary; it is in the run folder, vocab.json in randyGPT's format")
    return format


def _require_free(src: Path, dst: Path, force: bool) -> None:
    """Raises UserError if dst cannot be written: it is a folder or src, or it exists and `force` is not given."""
    if dst.is_dir():
        raise UserError(f"{dst}: is a folder; name a file in it")
    if dst.exists() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst}: is the file that is read; name another file to write")
    if dst.exists() and not force:
        raise UserError(f"{dst}: already exists; name another file, or overwrite it with --force")


def _packed(checkpoint: Checkpoint, format: str) -> Checkpoint:
    """Returns the checkpoint with packed matrices and without the optimizer's state.

    Raises:
        UserError: The network has no ternary layers, a width cannot be packed, or the format is not safetensors.
    """
    if format != "safetensors":
        raise UserError(f"--packed is for safetensors files, not for {format}; name a file such as small.safetensors")
    header = checkpoint.header
    model, weights = as_packed(header.config.model, checkpoint.weights)
    config = dataclasses.replace(header.config, model=model)
    return Checkpoint(header=dataclasses.replace(header, config=config, averaged=False), weights=weights, optimizer={})
