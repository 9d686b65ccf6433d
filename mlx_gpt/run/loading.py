"""Loads checkpoints of every format, their tokenizers, and their models."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt import formats
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.presets import preset_network
from mlx_gpt.config.schema import Config
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer, Tokenizer
from mlx_gpt.data.vocabularies import open_vocab, tokenizer_from_dict
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, Mismatch, OutOfRoom, Unreadable, UserError
from mlx_gpt.formats import nanochat
from mlx_gpt.formats.huggingface import folder as huggingface
from mlx_gpt.model.cost import context_bytes
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.mixers.kernels import kernel_of
from mlx_gpt.model.packing import PACKED
from mlx_gpt.run.request import specs_of
from mlx_gpt.train.saving import BEST, LATEST

# The settings of the table [data] that determine a tokenizer.
TOKENIZER_KEYS = ("tokenizer", "vocab_size", "bpe_rule", "vocab")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A loaded checkpoint.

    Attributes:
        model: The network: `model(tokens)` maps ids (B, T) to logits (B, T, V).
        tokenizer: The tokenizer; None if the checkpoint contains no tokenizer and the caller gave none.
        header: Settings and progress.
    """

    model: GPT
    tokenizer: Tokenizer | None
    header: Header

    @property
    def config(self) -> Config:
        return self.header.config


def load(
    path: str | Path,
    preset: str | None = None,
    n_embd: int | None = None,
    n_head: int | None = None,
    n_layer: int | None = None,
    block_size: int | None = None,
    corpus: str | Path | Sequence[str | Path] | None = None,
    vocab: str | Path | None = None,
) -> Run:
    """Loads and verifies a checkpoint of any format.

    An RGPT file (.bin) contains neither the shape of the network nor a tokenizer. The shape is taken from `preset`,
    from the sizes given, or from the file's length. The tokenizer is made from `corpus` or read from `vocab`.

    Args:
        path: A checkpoint, a run folder (its best checkpoint), or an exported folder.
        preset: Name or path of the preset that the network must match.
        n_embd, n_head, n_layer, block_size: Sizes that the network must have.
        corpus: For an RGPT file: the text that the model was trained on. Its characters become the tokenizer.
        vocab: For an RGPT file: the vocab.json or tokenizer.json that the model was trained with.

    Returns:
        The model, its tokenizer (None if there is none) and the header.

    Raises:
        BadFile: The file is corrupt, or of an unknown format.
        Mismatch: The network or the vocabulary differs from the one that the arguments ask for.
        UserError: There is no such file or preset, or the number of heads is not known.
    """
    sizes = sizes_of(n_embd, n_head, n_layer, block_size)
    return to_run(path, with_text(path, read_checkpoint(Path(path), preset, sizes), corpus, vocab))


def sizes_of(n_embd: int | None, n_head: int | None, n_layer: int | None, block_size: int | None) -> dict[str, int]:
    """The sizes that are not None, as settings of the table [model], such as {"n_embd": 256}."""
    sizes = {"n_embd": n_embd, "n_head": n_head, "n_layer": n_layer, "block_size": block_size}
    return {name: size for name, size in sizes.items() if size is not None}


def read_checkpoint(
    path: Path, preset: str | None = None, network: dict[str, Any] | None = None, mhc: Path | None = None
) -> Checkpoint:
    """Reads a checkpoint of any format.

    Args:
        path: A checkpoint, a run folder, or an exported folder.
        preset: Name or path of the preset that the network must match.
        network: Settings of the table [model] that the network must have. They take precedence over the preset.
        mhc: The file with the residual streams of a nanochat model; only if `path` is one.

    Raises:
        BadFile: The file is corrupt, or of an unknown format.
        Unreadable: The system failed to read the file.
        Mismatch: The checkpoint's network differs from `preset` or `network`.
        UserError: There is no such file or preset, or the number of heads is not known.
    """
    wanted = (preset_network(preset).architecture() if preset else {}) | (network or {})
    path = checkpoint_in(path)
    try:
        checkpoint = nanochat.read(path, mhc) if mhc else formats.format_of(path).read(path, wanted)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    own = checkpoint.header.config.model.architecture()
    if own | wanted != own:
        raise Mismatch(
            f"{path}: the file has another network than requested: {store.differences(wanted, own)}; leave out the "
            "preset and the settings of the network, which are read from the file"
        )
    return checkpoint


def checkpoint_in(path: Path) -> Path:
    """Returns the path of the checkpoint that `path` stands for.

    This is the best checkpoint of a run folder, or its latest one if there is no best one. A file or an exported folder
    is returned unchanged.

    Raises:
        UserError: There is no such path, or it is a folder that is neither a run folder nor an exported folder.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_dir() or huggingface.is_folder(path):
        return path
    inside = [path / name for name in (BEST, LATEST) if (path / name).is_file()]
    if not inside:
        raise UserError(
            f"{path}: is a folder without a checkpoint or a config.json; give a run folder, a checkpoint or an "
            "exported folder"
        )
    return inside[0]


def format_of(path: Path) -> str:
    """The name of a checkpoint's format: that in FORMATS, in capitals for RGPT files."""
    name = formats.format_of(path).name
    return name.upper() if name.startswith("rgpt") else name


def with_text(
    path: str | Path,
    checkpoint: Checkpoint,
    corpus: str | Path | Sequence[str | Path] | None,
    vocab: str | Path | None = None,
) -> Checkpoint:
    """Adds a tokenizer to a checkpoint that may have none.

    Args:
        path: The path of the checkpoint, for messages.
        checkpoint: The checkpoint.
        corpus: A text. Its characters become the tokenizer, and it becomes the checkpoint's `data.corpus`.
        vocab: A vocab.json or tokenizer.json. If it is given, `corpus` is not read.

    Returns:
        The checkpoint with the tokenizer. Without `corpus` and `vocab`, the checkpoint is returned unchanged.

    Raises:
        Mismatch: The tokenizer is not the checkpoint's own, or its number of ids is not the checkpoint's vocab_size.
    """
    if vocab:
        return _with_tokenizer(path, checkpoint, open_vocab(Path(vocab)), str(vocab))
    if not corpus:
        return checkpoint
    specs = specs_of(corpus)
    text = open_corpus(specs)
    checkpoint = _with_tokenizer(path, checkpoint, CharTokenizer.train(text.texts()), f"corpus {text.name}")
    config = checkpoint.header.config.replace({"data.corpus": specs})
    header = dataclasses.replace(checkpoint.header, corpus=text.fingerprint, division=text.division, config=config)
    return dataclasses.replace(checkpoint, header=header)


def load_with_tokenizer(
    path: Path, preset: str | None, sizes: dict[str, int], corpus: Sequence[str], vocab: str | None
) -> Run:
    """Loads a checkpoint to evaluate it on a text.

    If the checkpoint has a tokenizer, `corpus` is only the text of the evaluation, and is not read here. Otherwise its
    characters become the tokenizer. The arguments are those of read_checkpoint() and with_text().

    Raises:
        UserError: The checkpoint has no tokenizer, and neither `corpus` nor `vocab` is given.
    """
    checkpoint = read_checkpoint(path, preset, sizes)
    if checkpoint.header.tokenizer is None and not (corpus or vocab):
        raise UserError(
            f"{path}: the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its "
            "vocabulary with --vocab"
        )
    return to_run(path, with_text(path, checkpoint, None if checkpoint.header.tokenizer else corpus, vocab))


def _with_tokenizer(path: str | Path, checkpoint: Checkpoint, tokenizer: Tokenizer, origin: str) -> Checkpoint:
    header = checkpoint.header
    if header.tokenizer and header.tokenizer != tokenizer.to_dict():
        raise Mismatch(
            f"{path}: its tokenizer, {header.tokenizer['kind']} with {header.vocab_size} ids, differs from that of "
            f"{origin}, {tokenizer.to_dict()['kind']} with {tokenizer.vocab_size} ids; leave out {origin}"
        )
    require_vocab(str(path), origin, tokenizer, header.vocab_size)
    return dataclasses.replace(checkpoint, header=dataclasses.replace(header, tokenizer=tokenizer.to_dict()))


def require_trainable(path: str | Path, checkpoint: Checkpoint) -> None:
    """Raises Mismatch if the matrices of a checkpoint are packed: there are no float32 weights to train."""
    if checkpoint.header.config.model.linear == PACKED:
        raise Mismatch(
            f"{path}: is packed, so it can only be used for inference; train the checkpoint that it was converted "
            "from, or a new network with model.linear=ternary"
        )


def require_run(run: Any) -> None:
    """Raises UserError if `run` is not a loaded model, for example if it is the path of a checkpoint."""
    if not isinstance(run, Run):
        raise UserError(f"run={run!r} is not allowed; give a model from mlx_gpt.load(PATH)")


def require_context(run: Run) -> None:
    """Raises OutOfRoom if a forward pass over one full context needs more memory than MLX may use.

    A checkpoint with rotary positions has no tensor that depends on model.block_size, so a small file can ask for any.
    """
    shape = run.config.model
    by_blocks = kernel_of("auto", shape.head_dim, shape.block_size, mx.float32) == "blocks"
    needed, limit = context_bytes(shape, run.header.vocab_size, by_blocks), mx.get_memory_limit()
    if needed > limit:
        raise OutOfRoom(
            f"a context of model.block_size={shape.block_size} tokens needs about {needed / 1e9:.1f} GB, but MLX may "
            f"use only {limit / 1e9:.1f} GB here; use a model with a shorter context, or a machine with more memory"
        )


def require_vocab(checkpoint: str, origin: str, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises Mismatch unless a tokenizer has as many ids as a checkpoint.

    Args:
        checkpoint: The path of the checkpoint, for the message.
        origin: Where the tokenizer is from, for the message: a vocabulary file, or "corpus NAME".
        tokenizer: The tokenizer.
        vocab_size: The number of ids of the checkpoint.
    """
    if tokenizer.vocab_size != vocab_size:
        raise Mismatch(
            f"{checkpoint}: has {vocab_size} ids, but {origin} has a vocabulary of {tokenizer.vocab_size} ids; give "
            "the text that the checkpoint was trained on with --corpus, or its vocabulary with --vocab"
        )


def tokenizer_settings(header: Header, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's tokenizer, by dotted name; none if the checkpoint contains no tokenizer.

    Args:
        header: The header of the checkpoint.
        settings: The requested settings by dotted name.

    Raises:
        Mismatch: `settings` has another value for one of these settings.
    """
    if header.tokenizer is None:
        return {}
    own = {f"data.{name}": getattr(header.config.data, name) for name in TOKENIZER_KEYS}
    own["data.tokenizer"] = header.tokenizer["kind"]
    for name, value in own.items():
        if settings.get(name, value) != value:
            raise Mismatch(
                f"{name} is {settings[name]}, but the checkpoint has {value or 'its own'}; a model keeps its "
                "tokenizer, leave out --bpe and --vocab"
            )
    return own


def to_run(path: str | Path, checkpoint: Checkpoint) -> Run:
    """Builds the model of a checkpoint and puts its weights on the device.

    Raises:
        BadFile: The tokenizer is corrupt. The message names `path`, the path of the checkpoint.
    """
    header = checkpoint.header
    model = GPT(header.config.model, header.vocab_size)
    model.set_weights({name: mx.array(w) for name, w in checkpoint.weights.items()})
    return Run(model=model, tokenizer=tokenizer_of(path, header), header=header)


def tokenizer_of(path: str | Path, header: Header) -> Tokenizer | None:
    """The tokenizer that a checkpoint contains; None if it contains none, as after reading an RGPT file.

    Args:
        path: The path of the checkpoint, for messages.
        header: The header of the checkpoint.

    Raises:
        BadFile: The tokenizer is corrupt, or its number of ids differs from the header's vocab_size.
    """
    if header.tokenizer is None:
        return None
    try:
        tokenizer = tokenizer_from_dict(header.tokenizer)
    except BadFile as error:
        raise BadFile(f"{path}: {error}") from None
    if tokenizer.vocab_size != header.vocab_size:
        raise BadFile(
            f"{path}: the checkpoint has {header.vocab_size} ids, but its tokenizer has {tokenizer.vocab_size}; the "
            "checkpoint is corrupt, use an earlier one"
        )
    return tokenizer
