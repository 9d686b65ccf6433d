"""`convert`: converts checkpoints between formats."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.errors import UserError
from mlx_gpt.files import require_destination
from mlx_gpt.formats import FORMATS, format_of
from mlx_gpt.formats.nanochat import write as write_nanochat
from mlx_gpt.formats.rgpt import has_moments
from mlx_gpt.model.packing import PACKED, as_packed
from mlx_gpt.run.imported import with_recipe
from mlx_gpt.run.loading import checkpoint_in, read_checkpoint, sizes_of, with_text
from mlx_gpt.run.request import Note, ignore

FILES = {name: row for name, row in FORMATS.items() if not row.is_folder}


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
    mhc: str | Path | None = None,
    force: bool = False,
    note: Note = ignore,
) -> str:
    """Converts a checkpoint between safetensors, RGPT0001, RGPT0002, RGPT0003, GGUF and nanochat.

    Args:
        src: A checkpoint of any format, a run folder, or an exported folder.
        dst: The file to write.
        format: safetensors, rgpt0001, rgpt0002, rgpt0003, gguf or nanochat. [default: safetensors; if dst ends in
            .gguf, gguf; if dst ends in .bin, rgpt0003, or rgpt0002 without AdamW's moments]
        preset, n_embd, n_head, n_layer, block_size, corpus, vocab: As for `load`; an RGPT file does not contain them.
        packed: Whether the matrices of a ternary network are stored in 2 bits per weight, without optimizer state, for
            safetensors only. The file can be used, but not trained.
        mhc: The file of a nanochat model's residual streams. It is read if src is a nanochat file, otherwise written.
        force: Whether files are overwritten if they exist.
        note: Called with each message for the user, one line of text.

    Returns:
        The format that was written: safetensors, rgpt0001, rgpt0002, rgpt0003, gguf or nanochat.

    Raises:
        UserError: src does not exist, dst exists, or the format cannot represent the checkpoint.
        BadFile: src is corrupt, or of an unknown format.
        Mismatch: The network or the vocabulary of src differs from the arguments.
    """
    src, dst = Path(src), Path(dst)
    if format not in (None, *FILES):
        raise UserError(f"format={format!r} is not allowed; choose from {', '.join(FILES)}")
    src = checkpoint_in(src)
    require_destination(src, dst, force)
    mhc_in, mhc_out = _streams(src, dst, mhc, format, force)
    checkpoint = read_checkpoint(src, preset, sizes_of(n_embd, n_head, n_layer, block_size), mhc_in)
    format = format or _format_for(dst, checkpoint)
    if packed:
        checkpoint = _packed(src, checkpoint, format)
    if format == "safetensors" and not checkpoint.header.config.model.extensions():  # randyGPT's network
        checkpoint = with_recipe(checkpoint, note)
    checkpoint = with_text(src, checkpoint, corpus, vocab)
    if mhc_out:
        write_nanochat(dst, checkpoint, mhc_out)
    else:
        FILES[format].write(checkpoint, dst)
    if mhc_in and checkpoint.header.config.model.residual == "add":
        note(f"the gains of {mhc} are in the scales of wo and fc2, which float16 may not hold exactly")
    _tell_what_is_missing(dst, format, checkpoint.header.tokenizer, note)
    return format


def _format_for(dst: Path, checkpoint: Checkpoint) -> str:
    """The format that the name of a file stands for."""
    if dst.suffix == ".bin":
        return "rgpt0003" if has_moments(checkpoint) else "rgpt0002"
    return "gguf" if dst.suffix == ".gguf" else "safetensors"


def _tell_what_is_missing(dst: Path, format: str, tokenizer: dict | None, note: Note) -> None:
    """Tells whether a file lacks the tokenizer."""
    if format == "safetensors" and not tokenizer:
        note(f"{dst} has no tokenizer; add the characters of a text with --corpus, or a vocabulary with --vocab")
    if format == "nanochat" and tokenizer:
        note(f"{dst} does not contain the tokenizer")
    if format.startswith("rgpt") and tokenizer and tokenizer["kind"] != "char":
        note(f"{dst} does not contain the vocabulary; it is in the run folder, vocab.json in randyGPT's format")


def _packed(src: Path, checkpoint: Checkpoint, format: str) -> Checkpoint:
    """Returns the checkpoint with packed matrices and without the optimizer's state.

    Raises:
        UserError: The network has no ternary layers, is packed already, or has a width that cannot be packed, or the
            format is not safetensors.
    """
    if format != "safetensors":
        raise UserError(f"--packed is for safetensors files, not for {format}; name a file such as small.safetensors")
    header = checkpoint.header
    if header.config.model.linear != "ternary":
        reason = "is packed already" if header.config.model.linear == PACKED else "has no ternary layers"
        raise UserError(f"--packed: {src} {reason}; leave out --packed")
    model, weights = as_packed(header.config.model, checkpoint.weights)
    config = dataclasses.replace(header.config, model=model)
    return Checkpoint(header=dataclasses.replace(header, config=config, averaged=False), weights=weights, optimizer={})


def _streams(
    src: Path, dst: Path, mhc: str | Path | None, format: str | None, force: bool
) -> tuple[Path | None, Path | None]:
    """Returns the mHC file to read, and the one to write. At most one of them is not None.

    Raises:
        UserError: The files are not different ones, or `mhc` belongs to no nanochat file or cannot be written.
    """
    if mhc is None:
        return None, None
    mhc = Path(mhc)
    if mhc.resolve() in (src.resolve(), dst.resolve()):
        raise UserError(f"--mhc {mhc} is the file to read or to write, too; give it a file of its own")
    if src.is_file() and format_of(src).name == "nanochat":
        if format == "nanochat":
            raise UserError(f"{src}: is a nanochat file already; convert it to safetensors, and the result to nanochat")
        return mhc, None
    if format != "nanochat":
        raise UserError(f"--mhc {mhc} is for nanochat files, and neither {src} nor the file to write is one")
    require_destination(src, mhc, force)
    return None, mhc
