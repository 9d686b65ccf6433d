"""Model files of nanochat-rs-ternary: Llama's network with ternary matrices in groups of 64 or 128 weights.

The layout is that of GGUF, except for the magic "GUGF", the dimensions, which are outermost first, and the type Q1_58.
A tensor of this type has the trits of all rows, four in a byte, the first in the lowest bits (0 is 00, 1 is 01, -1 is
11), and then the scales of all rows in float32. The network rounds the inputs of these matrices to 8 bits per token.

The residual stream of a file may have several copies, whose parameters are in a file of their own, see formats/mhc.py.
The file contains no tokenizer.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_gpt.checkpoint.container import Entry, read_array
from mlx_gpt.checkpoint.store import Checkpoint, Header, require_finite
from mlx_gpt.config.schema import MAX_VOCAB, Config, ModelConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import llama
from mlx_gpt.formats.gguf import HeaderReader, Metadata, Stored, write_container
from mlx_gpt.formats.gguf_types import in_bits
from mlx_gpt.formats.mhc import MIXES, Units, gains, ordinary, read_units, units_of, weights_of, write_units
from mlx_gpt.formats.ternary import Ternary, packed_network, ternary_matrices
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.model.packing import PACKED
from mlx_gpt.parse import reading

MAGIC = b"GUGF"
MAX_ITEMS, MAX_BYTES = 100_000, 16 << 20  # tensors or metadata entries, and bytes of one string or array
TYPES = {0: "F32", 1: "F16", 100: "Q1_58"}
LANES = in_bits(2, 1, zero=0, scale_first=False)
GROUPS = ("64", "128")
# The settings of the table [model] that the format has no keys for.
SETTINGS = llama.SETTINGS | {"linear": "ternary", "ternary_activations": "int8", "norm_eps": 1e-6}
KEY = "nanochat."
GROUP_KEYS = ("nanochat.group_size", "nanochat.model.group_size", "model.group_size")
# Keys that hold a count, and the settings of the table [model] that they hold.
COUNTS = {"dim": "n_embd", "n_layers": "n_layer", "n_heads": "n_head", "n_kv_heads": "n_kv_head"}
COUNTS |= {"max_seq_len": "block_size"}
REALS = {"rope_theta": 1e4, "rope_scale": 1.0}  # the values of absent keys
# Keys that do not change the network that the tensors and the other keys describe.
OTHERS = {"vocab_size", "group_size", "model.group_size", "mhc_n_streams", "weight_tied", "ffn_mult"}
OTHERS |= {"deltanet_v_heads", "deltanet_qk_heads", "n_active_experts", "expert_dim"}
# Parts of the names of keys and tensors of other networks.
REFUSED = {
    **{"deltanet": "DeltaNet", "w_beta": "DeltaNet", "expert": "experts", "router": "experts", "gated": "gates"},
    **{"loop": "loops", "local_before": "loops", "local_after": "loops", "wavefield": "wavefield", "engram": "engram"},
}


class Nanochat:
    """The format of nanochat-rs-ternary. It holds no tokenizer and no optimizer state. See formats.Format."""

    name, is_folder = "nanochat", False

    def recognizes(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with reading(path) as file:
            return file.read(len(MAGIC)) == MAGIC

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        return read(path)

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        write(path, checkpoint)

    def refuses(self, config: Config) -> str | None:
        model = config.model
        if model.residual == "mhc":  # its streams are in a file of their own
            model = dataclasses.replace(model, residual="add")
        model = dataclasses.replace(model, linear="ternary") if model.linear == PACKED else model
        others = [reason] if (reason := llama.refuses(model, SETTINGS)) else []
        if model.ternary_group not in GROUPS:
            others.append(f"model.ternary_group={model.ternary_group} instead of 64 or 128")
        inexact = [name for name in REALS if float(str(np.float32(getattr(model, name)))) != getattr(model, name)]
        others += [f"model.{name}={getattr(model, name)} instead of a float32" for name in inexact]
        if not others:
            return None
        return f"nanochat holds only Llama's ternary network, not {', '.join(others)}; give another model"


# -- writing --------------------------------------------------------------------------------------------------------


def write(path: Path, checkpoint: Checkpoint, mhc: Path | None = None) -> None:
    """Writes a model file.

    Args:
        path: The file to write or replace.
        checkpoint: The checkpoint.
        mhc: A file for the parameters of the residual streams, which nanochat-rs-ternary needs. A network without mixed
            streams gets two that are ordinary residual connections. Without `mhc`, the file says that the model has one
            stream.

    Raises:
        UserError: The format cannot hold the network, the network has mixed streams and `mhc` is None, or a file cannot
            be written.
        OutOfRoom: The disk is full.
    """
    header = checkpoint.header
    if reason := Nanochat().refuses(header.config):
        raise UserError(reason)
    model = header.config.model
    mixed = model.residual == "mhc"
    if mixed and mhc is None:
        raise UserError(f"{path}: the parameters of the residual streams need a file of their own; name it with --mhc")
    units = units_of(checkpoint.weights, model.n_layer) if mixed else ordinary(model.n_layer)
    weights = checkpoint.weights | ternary_matrices(model, checkpoint.weights)
    names = llama.weight_names(model, "nanochat")
    tensors = {theirs: _stored(weights[ours], int(model.ternary_group)) for ours, theirs in names.items()}
    counts = {name: getattr(model, setting) for name, setting in COUNTS.items()} | {"n_kv_heads": model.num_kv_heads}
    counts |= {"vocab_size": header.vocab_size, "group_size": int(model.ternary_group)}
    counts |= {"mhc_n_streams": units.pre.shape[1] if mhc else 1, "weight_tied": int(model.tied_head)}
    reals = {name: getattr(model, name) for name, absent in REALS.items() if getattr(model, name) != absent}
    reals |= {"rope_theta": model.rope_theta, "ffn_mult": model.ffn_width / model.n_embd}
    metadata = {
        "general.architecture": "nanochat-ternary",
        **{KEY + name: np.uint32(count) for name, count in counts.items()},
        **{KEY + name: np.float32(real) for name, real in reals.items()},
    }
    write_container(path, MAGIC, metadata, tensors)
    if mhc:
        write_units(mhc, units)


def _stored(weight: np.ndarray | Ternary, group: int) -> Stored:
    """A weight as it is stored: float32, or Q1_58 if it is ternary."""
    if not isinstance(weight, Ternary):
        return Stored(dims=weight.shape, kind=0, size=weight.nbytes, data=weight.astype("<f4", copy=False).tobytes)
    scales = np.ascontiguousarray(weight.scales_by(str(group)), "<f4")
    size = weight.trits.size // 4 + scales.nbytes
    return Stored(dims=weight.shape, kind=100, size=size, data=functools.partial(_encoded, weight.trits, scales))


def _encoded(trits: np.ndarray, scales: np.ndarray) -> bytes:
    return LANES.pack((trits & 3).astype(np.uint8)).tobytes() + scales.tobytes()


# -- reading --------------------------------------------------------------------------------------------------------


def read(path: Path, mhc: Path | None = None) -> Checkpoint:
    """Reads a model file.

    Args:
        path: The file.
        mhc: The file with the parameters of its residual streams. If every unit is an ordinary residual connection,
            the gains are multiplied into the scales of the matrices that write to the residual stream, in float32.
            Otherwise the network has mixed streams.

    Returns:
        A checkpoint with packed ternary matrices, without tokenizer and optimizer state. Its step is 1, and its best
        loss is not known.

    Raises:
        BadFile: A file is corrupt, or has another network. The message names what is refused.
        UserError: The file has residual streams, and mhc is None. It has one stream, and mhc is not None.
    """
    with reading(path) as file:
        reader = _Header(path, file)
        metadata, entries = reader.read()
        model, vocab_size = _model(path, metadata, entries), _vocab_size(path, metadata, entries)
        _require_layout(path, model, vocab_size, entries)
        units = _units(path, metadata, model.n_layer, mhc)
        names = {theirs: ours for ours, theirs in llama.weight_names(model, "nanochat").items()}
        weights, matrices = {}, {}
        for name, entry in entries.items():
            ours, found = names[name], _read_tensor(file, entry, reader.group)
            if isinstance(found, Ternary) and ours != "lm_head.weight":
                matrices[ours] = found
            elif isinstance(found, Ternary):  # mlxgpt's head is not ternary
                weights[ours] = found.trits * found.scales_of(1)
            else:
                weights[ours] = found
    factors = gains(units) if units else ()
    if factors is None:
        weights |= weights_of(units)
        model = dataclasses.replace(model, residual="mhc", n_stream=units.pre.shape[1])
    for layer, pair in enumerate(() if factors is None else factors):
        for name, gain in zip(("attn.wo", "mlp.fc2"), pair, strict=True):
            matrix = matrices[f"layers.{layer}.{name}.weight"]
            scales = (matrix.scales * gain).astype(np.float32)
            matrices[f"layers.{layer}.{name}.weight"] = dataclasses.replace(matrix, scales=scales)
    model, weights = packed_network(model, weights, matrices, str(reader.group), "int8")
    require_finite(path, weights)
    header = Header(config=Config(model=model), vocab_size=vocab_size, step=1, num_updates=0, best_loss=math.inf)
    return Checkpoint(header=header, weights=weights, optimizer={})


class _Header(HeaderReader):
    """The header of a model file."""

    magic, container = MAGIC, "nanochat"

    @property
    def group(self) -> int:
        """The number of weights that share a scale."""
        found = next((self.metadata[key] for key in GROUP_KEYS if key in self.metadata), None)
        if not isinstance(found, np.integer) or str(found) not in GROUPS:
            raise BadFile(
                f"{self.path}: {GROUP_KEYS[0]} is {str(found)[:60]}; only {' and '.join(GROUPS)} are supported, give "
                "another model"
            )
        return int(found)

    def take(self, count: int, what: str) -> bytes:
        if count > MAX_BYTES:
            raise self.bad(f"{what} needs {count:,} bytes, but at most {MAX_BYTES:,} are allowed")
        return super().take(count, what)

    def counted(self, count: int, smallest: int, what: str) -> range:
        if count > MAX_ITEMS:
            raise self.bad(f"it should have {count:,} {what}, but at most {MAX_ITEMS:,} are allowed")
        return super().counted(count, smallest, what)

    def entry(self, name: str, dims: list[int], kind: int, offset: int) -> Entry:
        if kind not in TYPES:
            raise self.bad(f"{name} has the type {kind}, but {', '.join(map(str, TYPES))} are allowed")
        count, dtype = math.prod(dims), TYPES[kind]
        is_matrix = len(dims) == 2 and dims[1] % self.group == 0 if dtype == "Q1_58" else True
        if not 0 < count < 1 << 60 or not is_matrix:
            raise self.bad(f"{name} has the shape {tuple(dims)}, which {dtype} does not allow")
        size = count // 4 + count // self.group * 4 if dtype == "Q1_58" else count * {"F32": 4, "F16": 2}[dtype]
        return Entry(dtype=dtype, shape=tuple(dims), first=offset, end=offset + size)


def _read_tensor(file: BinaryIO, entry: Entry, group: int) -> np.ndarray | Ternary:
    file.seek(entry.first)
    count = math.prod(entry.shape)
    if entry.dtype != "Q1_58":
        dtype = {"F32": "<f4", "F16": "<f2"}[entry.dtype]
        return read_array(file, dtype, count).astype(np.float32, copy=False).reshape(entry.shape)
    codes = LANES.unpack(read_array(file, np.uint8, count // 4).reshape(entry.shape[0], -1))
    # Bit 0 says that a trit is not 0, and bit 1 that it is negative. The code 10 is therefore 0 too.
    trits = ((codes & 1) * (1 - (codes & 2).astype(np.int8))).astype(np.int8)
    scales = read_array(file, "<f4", count // group).astype(np.float32, copy=False)
    return Ternary(trits=trits, scales=scales.reshape(entry.shape[0], -1))


def _model(path: Path, metadata: Metadata, entries: dict[str, Entry]) -> ModelConfig:
    """The settings of the network with dense matrices. Raises BadFile if one is missing, or not allowed."""
    if metadata.get("general.architecture") != "nanochat-ternary":
        found = str(metadata.get("general.architecture"))[:60]
        raise BadFile(f"{path}: has the architecture {found!r}; only 'nanochat-ternary' is read")
    for key, value in metadata.items():
        name = key.removeprefix(KEY)
        if key in GROUP_KEYS or key.startswith("general."):
            continue
        is_zero = np.ndim(value) == 0 and value == 0
        if name != key and (name in COUNTS or name in REALS or name in OTHERS or is_zero):
            continue
        what = next((what for part, what in REFUSED.items() if part in name), "unknown")
        raise BadFile(f"{path}: {key}={str(value)[:60]} is not supported ({what}); give another model")
    gate, tied = entries.get("blocks.0.ffn.w_gate.weight"), "lm_head.weight" not in entries
    if gate is None:
        raise _refused_tensor(path, entries, set()) or BadFile(f"{path}: blocks.0.ffn.w_gate.weight is missing")
    if str(metadata.get(f"{KEY}weight_tied", int(tied))) not in (str(int(tied)), str(tied)):
        raise BadFile(f"{path}: {KEY}weight_tied says otherwise than its tensors; export it again")
    found = {f"{KEY}max_seq_len": np.uint32(2048)} | {KEY + name: np.float32(x) for name, x in REALS.items()} | metadata
    counts = {setting: _number(path, found, name, np.integer) for name, setting in COUNTS.items()}
    reals = {name: float(str(_number(path, found, name, np.floating))) for name in REALS}
    settings = SETTINGS | {"linear": "dense", "ternary_activations": "float"} | reals | {"ffn_dim": gate.shape[0]}
    try:
        return ModelConfig(**{name: int(count) for name, count in counts.items()}, **settings, tied_head=tied)
    except UserError as error:
        raise BadFile(f"{path}: {error}") from None


def _number(path: Path, metadata: Metadata, name: str, kind: type) -> Any:
    value = metadata.get(KEY + name)
    if not isinstance(value, kind):
        raise BadFile(f"{path}: {KEY}{name} is {str(value)[:60]!r}; expected a number")
    return value


def _vocab_size(path: Path, metadata: Metadata, entries: dict[str, Entry]) -> int:
    embedding = entries.get("tok_embed.weight")
    size = embedding.shape[0] if embedding else 0
    if not 1 <= size <= MAX_VOCAB or _number(path, metadata, "vocab_size", np.integer) != size:
        raise BadFile(
            f"{path}: tok_embed.weight has {size} rows; expected {KEY}vocab_size of them, from 1 to {MAX_VOCAB}"
        )
    return size


def _require_layout(path: Path, model: ModelConfig, vocab_size: int, entries: dict[str, Entry]) -> None:
    """Raises BadFile unless the tensors are those of the network, with their shapes and types."""
    names, shapes = llama.weight_names(model, "nanochat"), shapes_of(model, vocab_size)
    if refused := _refused_tensor(path, entries, set(names.values())):
        raise refused
    for ours, name in names.items():
        if name not in entries:
            raise BadFile(f"{path}: {name} is missing")
        entry, is_matrix = entries[name], ours.startswith("layers.") and len(shapes[ours]) == 2
        allowed = ("Q1_58",) if is_matrix else ("F32", "F16", "Q1_58") if ours == "lm_head.weight" else ("F32", "F16")
        if entry.shape != shapes[ours] or entry.dtype not in allowed:
            raise BadFile(
                f"{path}: {name} is {entry.dtype} {entry.shape}, expected {' or '.join(allowed)} {shapes[ours]}"
            )


def _refused_tensor(path: Path, entries: dict[str, Entry], names: set[str]) -> BadFile | None:
    """The error for the first tensor that is not in `names` and belongs to another network, if there is one."""
    for name in entries:
        what = next((what for part, what in REFUSED.items() if part in name), None)
        if name not in names and (what or names):
            return BadFile(f"{path}: {name} is not supported ({what or 'unknown'}); give another model")
    return None


def _units(path: Path, metadata: Metadata, num_layers: int, mhc: Path | None) -> Units | None:
    """The units of the residual streams. None for a model with one stream."""
    streams = metadata.get(f"{KEY}mhc_n_streams", 2)
    if np.ndim(streams) == 0 and streams == 1:
        if mhc:
            raise UserError(f"{path}: has one residual stream and needs no mHC file; leave out {mhc}")
        return None
    if np.ndim(streams) or streams not in MIXES:
        raise BadFile(f"{path}: {KEY}mhc_n_streams is {str(streams)[:60]}; expected 1, 2 or 4")
    if mhc is None:
        raise UserError(
            f"{path}: the parameters of its residual streams are in another file; name it with: "
            f"mlxgpt convert {path} model.safetensors --mhc FILE"
        )
    return read_units(mhc, num_layers, int(streams))
