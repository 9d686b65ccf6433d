"""GGUF files of Llama's network, which llama.cpp runs.

llama.cpp rotates neighbouring pairs of channels, and mlxgpt rotates channel j of a head with channel j + D / 2. The
rows of the query and key matrices are therefore interleaved in these files. All other matrices are the same.

The settings and the progress of a run that llama.cpp has no keys for are in keys that begin with "mlxgpt.".

A network with ternary matrices is Llama's network with their values. A file holds the trits and the scales themselves
if the type of its matrices is one of gguf_types.TERNARY. Such a file is read as a network with packed matrices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gpt.checkpoint.container import Entry
from mlx_gpt.checkpoint.store import Checkpoint, Header, require_finite
from mlx_gpt.config.schema import MAX_VOCAB, Config, ModelConfig
from mlx_gpt.data.vocabularies import tokenizer_from_dict
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import gguf, llama
from mlx_gpt.formats.gguf import Metadata
from mlx_gpt.formats.gguf_tokenizer import read_tokenizer, to_metadata
from mlx_gpt.formats.gguf_types import TERNARY, TYPES
from mlx_gpt.formats.ternary import GROUPS, Ternary, common_group, packed_network, ternary_matrices
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.model.packing import as_dense
from mlx_gpt.parse import reading

# Values of general.file_type, by the type of all matrices, or of the ternary ones.
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "TQ2_0": 37, "TQ1_0": 36, "Q2_0": 41, "Q4_0": 2}
# The types that are chosen for ternary networks, in this order, if none is given.
PREFERRED = ("TQ2_0", "Q2_0", "Q4_0", "F32")
# Keys that begin with "llama." and hold a count, and the settings of the table [model] that they hold.
COUNTS = {
    "llama.block_count": "n_layer",
    "llama.context_length": "block_size",
    "llama.embedding_length": "n_embd",
    "llama.feed_forward_length": "ffn_dim",
    "llama.attention.head_count": "n_head",
    "llama.attention.head_count_kv": "n_kv_head",
}
EPS, BASE = "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"
# Settings that are float64 here and float32, or combined, in llama.cpp's keys.
EXACT = ("norm_eps", "rope_theta", "rope_scale")
# Settings of a network whose matrices are stored as trits and scales, and their keys.
PACKED = {name: f"mlxgpt.{name}" for name in ("ternary_group", "ternary_activations")}
PROGRESS = ("mlxgpt.iteration", "mlxgpt.step", "mlxgpt.best_loss")
ACTIVATIONS = ("float", "int8")
# Reasons why a tensor is refused, by a part of its name.
REFUSED = {
    "rope_freqs": "factors of the rotary frequencies",
    ".bias": "a bias",
    "_exps": "experts",
    "_inp": "experts",
    "_norm": "a norm that Llama's network does not have",
}


class GGUF:
    """The format of llama.cpp, for Llama's network. It holds no optimizer state. See formats.Format."""

    name, is_folder = "gguf", False

    def recognizes(self, path: Path) -> bool:
        return path.is_file() and gguf.recognizes(path)

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        return read(path)

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        write(path, checkpoint)

    def refuses(self, config: Config) -> str | None:
        if others := llama.refuses(as_dense(config.model, {})[0]):
            return f"gguf holds only Llama's network, not {others}; train a preset such as llama-s"
        return None


def write(path: Path, checkpoint: Checkpoint, file_type: str | None = None) -> str:
    """Writes a checkpoint as a GGUF file, and returns the type of its matrices.

    Args:
        path: The file to write or replace.
        checkpoint: The checkpoint, with its tokenizer.
        file_type: The type of the matrices: F32, which is exact; F16; Q8_0, with 8.5 bits per weight, for dense
            matrices; or a type in gguf_types.TERNARY, which holds ternary matrices exactly. With the ternary types, the
            embedding and the head are F32. The weights of norms are always F32. [default: F32, or the first of
            PREFERRED that can hold the ternary matrices]

    Raises:
        UserError: The network or the vocabulary cannot be represented, the type cannot hold the matrices, a weight is
            too large for the type, or the file cannot be written.
        OutOfRoom: The disk is full.
    """
    header = checkpoint.header
    if reason := GGUF().refuses(header.config):
        raise UserError(reason)
    model = header.config.model
    if file_type is None:
        file_type = next(kind for kind in PREFERRED if not _misfit(model, kind))
    if file_type not in FILE_TYPES:
        raise UserError(f"the GGUF type {file_type!r} is not allowed; choose from {', '.join(FILE_TYPES)}")
    if header.tokenizer is None:
        raise UserError(
            "gguf needs a tokenizer, but this checkpoint has none; add one with mlxgpt convert and --corpus or --vocab"
        )
    if reason := _misfit(model, file_type):
        others = [kind for kind in FILE_TYPES if not _misfit(model, kind)]
        raise UserError(f"{file_type} {reason}; choose {' or '.join([', '.join(others[:-1]), others[-1]])}")
    is_packed = file_type in TERNARY
    if is_packed:
        found = checkpoint.weights | ternary_matrices(model, checkpoint.weights)
    else:
        found = as_dense(model, checkpoint.weights)[1]
    names = llama.weight_names(model, "gguf")
    tensors = {theirs: _reordered(_interleaved, ours, found[ours], model) for ours, theirs in names.items()}
    types = {
        name: file_type if isinstance(tensor, Ternary) or (not is_packed and tensor.ndim == 2) else "F32"
        for name, tensor in tensors.items()
    }
    gguf.write(path, _metadata(header, file_type), tensors, types)
    return file_type


def _misfit(model: ModelConfig, kind: str) -> str | None:
    """The reason why a type cannot hold the matrices of a network, as the end of a sentence. None if it can."""
    elements, is_ternary = TYPES[kind][1], model.linear != "dense"
    if kind in TERNARY and not is_ternary:
        return f"holds only ternary matrices, but this network has model.linear={model.linear}"
    if kind == "Q8_0" and is_ternary:
        return "would round the scales of ternary matrices"
    if kind in TERNARY and model.ternary_group.isdigit() and int(model.ternary_group) % elements:
        return f"has one scale for {elements} weights, more than model.ternary_group={model.ternary_group}"
    for name, width in (("n_embd", model.n_embd), ("ffn_dim", model.ffn_width)):
        if width % elements:
            return f"has blocks of {elements}, which do not divide model.{name}={width}"
    return None


def _metadata(header: Header, file_type: str) -> Metadata:
    """The metadata of a checkpoint."""
    model = header.config.model
    stored = {"ffn_dim": model.ffn_width, "n_kv_head": model.num_kv_heads}
    return {
        "general.architecture": "llama",
        "general.name": "mlxgpt",
        "general.file_type": np.uint32(FILE_TYPES[file_type]),
        "general.quantization_version": np.uint32(2),
        **{key: np.uint32(stored.get(name, getattr(model, name))) for key, name in COUNTS.items()},
        "llama.vocab_size": np.uint32(header.vocab_size),
        "llama.rope.dimension_count": np.uint32(model.head_dim),
        BASE: np.float32(model.rope_base),
        EPS: np.float32(model.norm_eps),
        **to_metadata(tokenizer_from_dict(header.tokenizer)),
        **{f"mlxgpt.{name}": np.float64(getattr(model, name)) for name in EXACT},
        **{key: getattr(model, name) for name, key in PACKED.items() if file_type in TERNARY},
        **dict(zip(PROGRESS, _progress(header), strict=True)),
    }


def _progress(header: Header) -> tuple[np.uint64, np.uint64, str]:
    """The values of PROGRESS. The loss is a string, as in config.json of exported folders."""
    return np.uint64(header.step), np.uint64(header.num_updates), repr(float(header.best_loss))


def read(path: Path) -> Checkpoint:
    """Reads a GGUF file of Llama's network.

    Returns:
        A checkpoint without optimizer state. Its tokenizer is None if the file has none. Of a file that another program
        wrote, the step is 1, and the best loss is not known.

    Raises:
        BadFile: The file is corrupt, or has another network, another tokenizer, or tensors of a type that is not read.
            The message names what is refused. This is found before any tensor is read.
    """
    metadata, entries = gguf.read_header(path)
    model = _model(path, metadata, tied="output.weight" not in entries)
    vocab_size = entries["token_embd.weight"].shape[0] if "token_embd.weight" in entries else 0
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise BadFile(f"{path}: has a vocabulary of {vocab_size} ids, but 1 to {MAX_VOCAB} are allowed")
    _require_neutral(path, metadata, model, vocab_size)
    names = {theirs: ours for ours, theirs in llama.weight_names(model, "gguf").items()}
    _require_layout(path, names, shapes_of(model, vocab_size), entries)
    header = Header(config=Config(model=model), vocab_size=vocab_size, step=1, num_updates=0, best_loss=math.inf)
    if any(key in metadata for key in PROGRESS):
        header = dataclasses.replace(header, **_read_progress(path, metadata))
    if tokenizer := read_tokenizer(path, metadata):
        if tokenizer.vocab_size != vocab_size:
            raise BadFile(f"{path}: its tokenizer has {tokenizer.vocab_size} ids, but token_embd.weight {vocab_size}")
        header = dataclasses.replace(header, tokenizer=tokenizer.to_dict())
    _require_whole_ternary(path, entries)
    weights, matrices = {}, {}
    with reading(path) as file:
        for name, entry in entries.items():
            ours = names[name]
            if entry.dtype in TERNARY:
                matrices[ours] = _reordered(_separated, ours, gguf.read_ternary(file, name, entry), model)
            else:
                weights[ours] = _separated(ours, gguf.read_tensor(file, entry), model)
    if matrices:
        group, activations = _packed_settings(path, metadata, matrices)
        model, weights = packed_network(model, weights, matrices, group, activations)
        header = dataclasses.replace(header, config=Config(model=model))
    require_finite(path, weights)
    return Checkpoint(header=header, weights=dict(sorted(weights.items())), optimizer={})


def _require_whole_ternary(path: Path, entries: dict[str, Entry]) -> None:
    """Raises BadFile unless the ternary types are those of all matrices of the blocks, or of none."""
    for name, entry in entries.items():
        if entry.dtype in TERNARY and not (name.startswith("blk.") and len(entry.shape) == 2):
            raise BadFile(f"{path}: {name} is {entry.dtype}; only matrices of the blocks are read from this type")
    matrices = {name: entry for name, entry in entries.items() if name.startswith("blk.") and len(entry.shape) == 2}
    kinds = [name for name, entry in matrices.items() if entry.dtype in TERNARY]
    others = [name for name in matrices if name not in kinds]
    if kinds and others:
        raise BadFile(
            f"{path}: {kinds[0]} is {entries[kinds[0]].dtype}, but {others[0]} is {entries[others[0]].dtype}; either "
            "all matrices of the blocks are ternary or none is, give another model"
        )


def _packed_settings(path: Path, metadata: Metadata, matrices: dict[str, Ternary]) -> tuple[str, str]:
    """The values of model.ternary_group and model.ternary_activations. Raises BadFile if they do not fit the scales."""
    own = [metadata.get(key) for key in PACKED.values()]
    is_foreign = all(value is None for value in own)
    group, activations = (common_group(matrices.values()), "float") if is_foreign else map(str, own)
    if group is None:
        raise BadFile(
            f"{path}: the scales of its ternary matrices differ within 64 weights of a row; only one scale for 64 or "
            "more weights is supported, give another model"
        )
    if group not in GROUPS or activations not in ACTIVATIONS or not all(m.fits(group) for m in matrices.values()):
        raise BadFile(
            f"{path}: {', '.join(PACKED.values())} are {str(group)[:60]}, {str(activations)[:60]}, which is not "
            "allowed or does not fit its scales; remove these keys"
        )
    return group, activations


def _model(path: Path, metadata: Metadata, tied: bool) -> ModelConfig:
    """The settings of the network. Raises BadFile if one is missing, or not allowed."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise BadFile(f"{path}: has the architecture {str(architecture)[:60]!r}; only 'llama' is read")
    own = {name: metadata[f"mlxgpt.{name}"] for name in EXACT if f"mlxgpt.{name}" in metadata}
    found = {"llama.attention.head_count_kv": metadata.get("llama.attention.head_count"), BASE: np.float32(1e4)}
    found |= metadata
    counts = {name: _integer(path, found, key) for key, name in COUNTS.items()}
    reals = {"norm_eps": _real(path, found, EPS), "rope_theta": _real(path, found, BASE)}
    if own and not (own.keys() == set(EXACT) and all(isinstance(value, np.float64) for value in own.values())):
        raise BadFile(f"{path}: mlxgpt.{', mlxgpt.'.join(EXACT)} are not three float64 values")
    try:
        model = ModelConfig(
            **llama.SETTINGS, **counts, **(reals | {name: float(x) for name, x in own.items()}), tied_head=tied
        )
    except UserError as error:
        raise BadFile(f"{path}: {error}") from None
    if own and (np.float32(model.rope_base), np.float32(model.norm_eps)) != (metadata.get(BASE), metadata[EPS]):
        raise BadFile(f"{path}: {BASE} or {EPS} is not that of mlxgpt.{', mlxgpt.'.join(EXACT)}; remove these keys")
    return model


def _integer(path: Path, metadata: Metadata, key: str) -> int:
    value = metadata.get(key)
    if not isinstance(value, np.integer):
        raise BadFile(f"{path}: {key} is {str(value)[:60]!r}; expected a number, equal for all layers")
    return int(value)


def _real(path: Path, metadata: Metadata, key: str) -> float:
    """A number. A float32 becomes the shortest decimal number that is this float32, such as 1e-05."""
    value = metadata.get(key)
    if not isinstance(value, np.floating):
        raise BadFile(f"{path}: {key} is {str(value)[:60]!r}; expected a number")
    return float(str(value))


def _require_neutral(path: Path, metadata: Metadata, model: ModelConfig, vocab_size: int) -> None:
    """Raises BadFile for a key that begins with "llama." and changes the network that the other keys describe."""
    head, neutral = model.head_dim, dict.fromkeys([*COUNTS, EPS, BASE])
    neutral |= {f"llama.{key}": head for key in ("rope.dimension_count", "attention.key_length")}
    neutral |= {"llama.attention.value_length": head, "llama.vocab_size": vocab_size, "llama.attention.causal": True}
    neutral |= {f"llama.{key}": 0 for key in ("expert_count", "expert_used_count", "attention.sliding_window")}
    neutral |= {"llama.rope.scaling.type": "none"}
    for key, value in metadata.items():
        if not key.startswith("llama.") or (key in neutral and neutral[key] is None):
            continue
        if key not in neutral:
            raise BadFile(f"{path}: {key} is not supported, its network is not Llama's; give another model")
        if type(value) is np.ndarray or value != neutral[key]:
            raise BadFile(f"{path}: {key} is {str(value)[:60]}; only {neutral[key]} is supported, give another model")


def _require_layout(
    path: Path, names: dict[str, str], shapes: dict[str, tuple[int, ...]], entries: dict[str, Entry]
) -> None:
    """Raises BadFile unless the tensors are those of the network, with their shapes."""
    for name in entries:
        if name not in names:
            reason = next((reason for part, reason in REFUSED.items() if part in name), "it does not belong to Llama")
            raise BadFile(f"{path}: {name} is not supported ({reason}); give another model")
    for name, ours in names.items():
        if name not in entries:
            raise BadFile(f"{path}: {name} is missing")
        if entries[name].shape != shapes[ours]:
            raise BadFile(f"{path}: {name} has the shape {entries[name].shape}, expected {shapes[ours]}")


def _read_progress(path: Path, metadata: Metadata) -> dict[str, Any]:
    """The fields of a Header that PROGRESS holds. Raises BadFile."""
    step, updates, loss = (metadata.get(key) for key in PROGRESS)
    try:
        if isinstance(step, np.uint64) and isinstance(updates, np.uint64) and isinstance(loss, str):
            return {"step": int(step), "num_updates": int(updates), "best_loss": float(loss)}
    except ValueError:
        pass
    raise BadFile(f"{path}: {', '.join(PROGRESS)} are not two counts and a number as text; remove these keys")


def _reordered(order: Callable, name: str, weight: np.ndarray | Ternary, model: ModelConfig) -> np.ndarray | Ternary:
    """A weight after `order`, which is _interleaved() or _separated(). Scales follow the rows of their trits."""
    if not isinstance(weight, Ternary):
        return order(name, weight, model)
    return Ternary(trits=order(name, weight.trits, model), scales=order(name, weight.scales, model))


def _interleaved(name: str, weight: np.ndarray, model: ModelConfig) -> np.ndarray:
    """A weight with the rows as in the file. Of each head's D rows, row j becomes 2 j, and row D / 2 + j 2 j + 1."""
    heads = _rotary_heads(name, model)
    if not heads:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _separated(name: str, weight: np.ndarray, model: ModelConfig) -> np.ndarray:
    """The inverse of _interleaved()."""
    heads = _rotary_heads(name, model)
    if not heads:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _rotary_heads(name: str, model: ModelConfig) -> int:
    """The number of heads whose rows are rotated, for query and key matrices; otherwise 0."""
    if name.endswith(".attn.wq.weight"):
        return model.n_head
    return model.num_kv_heads if name.endswith(".attn.wk.weight") else 0
