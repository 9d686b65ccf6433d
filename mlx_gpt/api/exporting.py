"""`export` writes a model for other programs. `push` uploads it to the Hugging Face hub."""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_gpt.api.evaluation import evaluate
from mlx_gpt.checkpoint.store import Checkpoint, Header, Tensors
from mlx_gpt.errors import UserError
from mlx_gpt.files import make_folder, require_destination
from mlx_gpt.formats import FORMATS
from mlx_gpt.formats.huggingface.card import card
from mlx_gpt.formats.huggingface.folder import FILES, TARGETS, names_of, require_whole, write_folder
from mlx_gpt.formats.huggingface.packed import packed as pack_weights
from mlx_gpt.formats.huggingface.quantize import BITS
from mlx_gpt.formats.huggingface.quantize import quantize as quantize_weights
from mlx_gpt.formats.huggingface.weights import write_weights
from mlx_gpt.formats.llama_gguf import write as write_gguf
from mlx_gpt.model.packing import as_dense
from mlx_gpt.run.folder import is_run
from mlx_gpt.run.loading import checkpoint_in, read_checkpoint, to_run, tokenizer_of
from mlx_gpt.run.request import Note, ignore
from mlx_gpt.watch.compare import draw, read_record
from mlx_gpt.watch.metrics import read_metrics
from mlx_gpt.watch.tail import has_numbers

_ROUNDED = "the network rounds its inputs to 8 bits per token (model.ternary_activations=int8)"
# Messages about a network with model.ternary_activations=int8, by target.
INT8_NOTES = {
    **dict.fromkeys(TARGETS, f"{_ROUNDED}; the exported one does not"),
    "gguf": f"{_ROUNDED}; llama.cpp rounds them in blocks, or with the types F32 and F16 not at all",
}


def targets(src: str | Path) -> dict[str, str | None]:
    """The targets of `export`, each with the reason why it cannot hold the network of a checkpoint, or None if it can.

    Args:
        src: A checkpoint of any format, or a run folder.

    Raises:
        UserError: There is no such file.
        BadFile: src is corrupt, or of an unknown format.
    """
    config = read_checkpoint(Path(src)).header.config
    config = dataclasses.replace(config, model=as_dense(config.model, {})[0])
    return {target: FORMATS[target].refuses(config) for target in (*TARGETS, "gguf")}


def export(
    src: str | Path,
    dst: str | Path,
    target: str | None = None,
    *,
    quantize: int | None = None,
    packed: bool = False,
    gguf_type: str | None = None,
    license: str = "other",
    corpus: str | Path | Sequence[str | Path] | None = None,
    force: bool = False,
    note: Note = ignore,
) -> list[Path]:
    """Writes a folder that transformers or mlx-lm can load, or a GGUF file for llama.cpp.

    A folder contains weights, tokenizer and model card, and the code of a network that is not Llama's.

    Args:
        src: A checkpoint of any format, or a run folder. If src is a run folder or in one, the model card shows the
            run's validation losses, as a curve or a table.
        dst: The folder or file to write. A folder is created if it does not exist.
        target: "huggingface" for transformers, "mlx-lm" or "gguf". [default: gguf if dst ends in .gguf, otherwise
            huggingface]
        quantize: 8 or 4, the bits per weight of quantized matrices; for mlx-lm only. None does not quantize.
        packed: Whether ternary matrices are stored in 2 bits; for folders. Otherwise their values are float32.
        gguf_type: Type of the matrices in a GGUF file: F32, F16, Q8_0, TQ2_0, TQ1_0, Q2_0 or Q4_0. [default: F32; for
            ternary networks the first of TQ2_0, Q2_0, Q4_0 and F32 that holds the matrices exactly]
        license: Name of the model's license, for the model card.
        corpus: The text on whose validation split the loss before and after quantizing is measured. [default: the
            checkpoint's `data.corpus`]
        force: Whether to write into a folder that is not empty, or over a file.
        note: Called with each message for the user, one line of text.

    Returns:
        The paths of the files written.

    Raises:
        UserError: An argument is not allowed, the checkpoint has no tokenizer, or the target cannot hold its network or
            its vocabulary.
        BadFile: src is corrupt, or of an unknown format.
    """
    src, dst = Path(src), Path(dst)
    target = target or ("gguf" if dst.suffix == ".gguf" else "huggingface")
    _require_arguments(checkpoint_in(src), dst, target, quantize, packed, gguf_type, license, force)
    checkpoint = _to_export(src, target)
    facts = _differences(checkpoint.header, target, packed)
    if target == "gguf":
        return _write_gguf(dst, checkpoint, gguf_type, facts, note)
    tokenizer = tokenizer_of(src, checkpoint.header)
    trained, checkpoint = checkpoint, _dense(checkpoint)
    weights, extra, more = checkpoint.weights, {}, []
    if packed:
        weights, extra, *more = pack_weights(trained.header.config.model, trained.weights, target)
    elif quantize:
        weights, extra, *more = _quantized(src, checkpoint, quantize, corpus, note)
    facts += more
    text, picture = _described(src, dst, checkpoint.header, target, license, facts, note)
    paths = write_folder(dst, checkpoint, tokenizer, target, text, extra)
    return [*paths, write_weights(dst, names_of(checkpoint.header), weights), *picture]


def _to_export(src: Path, target: str) -> Checkpoint:
    """Reads the checkpoint to export. Raises UserError if the target cannot hold it."""
    checkpoint = read_checkpoint(src)
    if checkpoint.header.tokenizer is None:
        raise UserError(
            f"{src}: the checkpoint has no tokenizer; add one with --corpus or --vocab of: mlxgpt convert {src} FILE"
        )
    config = checkpoint.header.config
    if reason := FORMATS[target].refuses(dataclasses.replace(config, model=as_dense(config.model, {})[0])):
        raise UserError(reason)
    return checkpoint


def _write_gguf(dst: Path, checkpoint: Checkpoint, gguf_type: str | None, facts: list[str], note: Note) -> list[Path]:
    for fact in facts:
        note(fact)
    note(f"the matrices have the GGUF type {write_gguf(dst, checkpoint, gguf_type)}")
    return [dst]


def _differences(header: Header, target: str, packed: bool) -> list[str]:
    """Sentences about how the exported network differs from that of the checkpoint."""
    rounds = header.config.model.ternary_activations == "int8"
    return [INT8_NOTES[target]] if rounds and not (packed and target == "huggingface") else []


def _dense(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with dense matrices that hold the values of its ternary ones, if it has any."""
    header = checkpoint.header
    model, weights = as_dense(header.config.model, checkpoint.weights)
    config = dataclasses.replace(header.config, model=model)
    return Checkpoint(header=dataclasses.replace(header, config=config), weights=weights, optimizer={})


def _require_arguments(
    src: Path,
    dst: Path,
    target: str,
    quantize: int | None,
    packed: bool,
    gguf_type: str | None,
    license: str,
    force: bool,
) -> None:
    if target not in (*TARGETS, "gguf"):
        raise UserError(f"target={target!r} is not allowed; choose from {', '.join(TARGETS)}, gguf")
    if quantize not in (None, *BITS):
        raise UserError(f"quantize={quantize!r} is not allowed; choose from {', '.join(map(str, BITS))}")
    if not re.fullmatch(r"[\w.-]+", license):
        raise UserError(f"--license {license!r} is not the name of a license; give one such as mit or cc-by-4.0")
    if quantize and target != "mlx-lm":
        instead = "--gguf-type Q8_0" if target == "gguf" else "--to mlx-lm"
        raise UserError(f"--quantize {quantize} is only supported for mlx-lm, not for {target}; give {instead}")
    if packed and target == "gguf":
        raise UserError(f"--packed is for folders, and {dst} is a GGUF file; leave it out, or choose a --gguf-type")
    if packed and quantize:
        raise UserError(f"--packed and --quantize {quantize} exclude each other; give one of them")
    if gguf_type and target != "gguf":
        raise UserError(f"--gguf-type {gguf_type} is for GGUF files, not for {target}; name a file such as model.gguf")
    if target == "gguf":
        return require_destination(src, dst, force)
    if dst.exists() and not dst.is_dir():
        raise UserError(f"{dst}: is a file; name a folder")
    if dst.is_dir() and src.exists() and dst.samefile(src):
        raise UserError(f"{dst}: is the folder that is read; name another folder to write")
    if is_run(dst):
        raise UserError(f"{dst}: is a run folder; name another folder to write")
    if dst.is_dir() and any(dst.iterdir()) and not force:
        raise UserError(f"{dst}: is not empty; name another folder, or write into it with --force")


def _quantized(
    src: Path, checkpoint: Checkpoint, bits: int, corpus: str | Path | Sequence[str | Path] | None, note: Note
) -> tuple[Tensors, dict, str]:
    """Returns the quantized weights, their entry in config.json, and a sentence about them for the model card."""
    weights, dequantized, group = quantize_weights(checkpoint.weights, bits)
    fact = f"{bits} bits per weight, in groups of {group}{_losses(src, checkpoint, dequantized, corpus, note)}"
    return weights, {"quantization": {"group_size": group, "bits": bits}}, fact


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


def _described(
    src: Path, dst: Path, header: Header, target: str, license: str, facts: list[str], note: Note
) -> tuple[str, list[Path]]:
    """Tells the facts, and draws the curve of the run. Returns the model card, and the path of the curve if any."""
    for fact in facts:
        note(fact)
    evaluations = _evaluations(src)
    picture = _curve(src, dst) if evaluations else []
    return card(header, dst.resolve().name, target, license, evaluations, bool(picture), facts), picture


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
        raise UserError("sending needs huggingface_hub; install it with: pip install -e '.[hub]'") from None
    try:
        HfApi().create_repo(repo, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names)
    except Exception as error:  # huggingface_hub raises its own errors and those of its HTTP library
        raise UserError(f"{repo}: the files were not sent: {' '.join(str(error).split())[:300]}") from None
