"""The checkpoint: one safetensors file with a header in its metadata.

Tensors are the weights by name and the optimizer's state as `optimizer.<part>.<weight>`, all float32. The metadata
holds `format`, `format_version`, `header` (JSON) and `sha256`, of the header and of every tensor in order of name.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mlx_gpt.checkpoint.container import Entry, read_header, read_tensors
from mlx_gpt.config.schema import Config
from mlx_gpt.config.table import merge
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.gpt import shapes_of

FORMAT, FORMAT_VERSION = "mlxgpt", 3
OPTIMIZER = "optimizer."
MAX_VOCAB = 1 << 21  # above every code point and every published vocabulary

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Everything of a run that is not a tensor.

    `step` counts finished steps, `num_updates` those of them that were not skipped. Losses are in nats per token.
    Where `averaged`, the weights are the average and optimizer.ema the trained weights. `source` is the
    position of the source that trained them, None where it starts from its beginning.
    """

    config: Config
    vocab_size: int
    step: int
    num_updates: int
    best_loss: float = math.inf
    best_step: int = 0
    bad_evals: int = 0
    num_lr_cuts: int = 0
    last_eval: int = -1
    planned: bool = False
    averaged: bool = False
    tokens: int = 0
    elapsed: float = 0.0
    tokenizer: dict | None = None
    corpus: str | None = None
    source: dict | None = None

    @property
    def iteration(self) -> int:
        """Old name of `step`."""
        return self.step

    def to_json(self) -> str:
        data = dataclasses.asdict(self) | {"best_loss": _json_float(self.best_loss)}
        return json.dumps(data, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, version: int = FORMAT_VERSION) -> "Header":
        """Reads the header of a file of any format version."""
        data = json.loads(text)
        for migrate in MIGRATIONS[version - 1 :]:
            data = migrate(data)
        return cls(**data | {"config": Config.from_dict(data["config"]), "best_loss": float(data["best_loss"])})


def _from_version_1(data: dict) -> dict:
    """Version 1 did not write settings whose defaults changed afterwards."""
    before = {"optimizer": {"name": "adamw", "schedule": "cosine"}, "train": {"shuffle": False}}
    return data | {"config": merge(before, data["config"])}


def _from_version_2(data: dict) -> dict:
    """Version 2 called the step `iteration` and the number of updates `step`; its source was windows of a text."""
    names = {"step": "num_updates", "iteration": "step", "best_iteration": "best_step", "lr_cuts": "num_lr_cuts"}
    windows = data.get("tokens", 0) // Config.from_dict(data["config"]).model.block_size
    return {names.get(key, key): value for key, value in data.items()} | {"source": {"windows": windows}}


# Each takes a header of version 1, 2, ... to the next one.
MIGRATIONS = (_from_version_1, _from_version_2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A run at one moment: its header, its weights, and the optimizer's tensors as {"m.wte.weight": ...}."""

    header: Header
    weights: Tensors
    optimizer: Tensors

    def as_trained(self) -> "Checkpoint":
        """The same moment with the trained weights as `weights` and the average as optimizer tensors."""
        if not self.header.averaged:
            return self
        trained = {name: self.optimizer[f"ema.{name}"] for name in self.weights}
        average = {f"ema.{name}": w for name, w in self.weights.items()}
        header = dataclasses.replace(self.header, averaged=False)
        return Checkpoint(header=header, weights=trained, optimizer=self.optimizer | average)

    def as_averaged(self) -> "Checkpoint":
        """The same moment with the average as `weights`: the inverse of as_trained()."""
        average = {name: self.optimizer[f"ema.{name}"] for name in self.weights}
        trained = {f"ema.{name}": w for name, w in self.weights.items()}
        header = dataclasses.replace(self.header, averaged=True)
        return Checkpoint(header=header, weights=average, optimizer=self.optimizer | trained)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint atomically. Raises OutOfRoom on a full disk; what was there stays."""
    tensors = checkpoint.weights | {OPTIMIZER + k: t for k, t in checkpoint.optimizer.items()}
    tensors = {k: np.ascontiguousarray(t) for k, t in tensors.items()}  # as they are written, whatever their layout
    header = checkpoint.header.to_json()
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "header": header,
        "sha256": _digest(header, tensors),
    }
    write_atomic(path, [safetensors.numpy.save(tensors, metadata)])


def load(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint: container, header, names, shapes, types, checksum, finiteness.

    Raises BadFile, naming what is wrong, or UserError where there is no such file.
    """
    header, tensors = _read(path)
    weights = {k: t for k, t in tensors.items() if not k.startswith(OPTIMIZER)}
    optimizer = {k.removeprefix(OPTIMIZER): t for k, t in tensors.items() if k.startswith(OPTIMIZER)}
    return Checkpoint(header=header, weights=weights, optimizer=optimizer)


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as a safetensors file does: a length and an opening brace."""
    with open(path, "rb") as f:
        return f.read(9)[8:] == b"{"


def is_ours(path: Path) -> bool:
    """Whether a safetensors file says that it is an mlxgpt checkpoint."""
    return read_header(path)[1].get("format") == FORMAT


def require_finite(path: Path, tensors: Tensors) -> None:
    """Raises BadFile for the first tensor that holds an infinity or a NaN."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise BadFile(f"{path}: {name} holds values that are not finite; use an earlier checkpoint")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """ "n_embd 256, the file has 128", for the keys whose values differ."""
    return "; ".join(f"{k} {ours[k]}, the file has {theirs[k]}" for k in ours if ours[k] != theirs[k])


def _read(path: Path) -> tuple[Header, Tensors]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entries, metadata = read_header(path)
    header = _header(path, metadata)
    _require_layout(path, header, entries)
    tensors = read_tensors(path, entries)
    if metadata.get("sha256") != _digest(metadata["header"], tensors):
        raise BadFile(f"{path}: its contents don't match their SHA-256, the file is corrupt; use an earlier checkpoint")
    require_finite(path, tensors)
    return header, tensors


def _header(path: Path, metadata: dict[str, str]) -> Header:
    if metadata.get("format") != FORMAT or "header" not in metadata:
        raise BadFile(f"{path}: a safetensors file, but not an mlxgpt checkpoint")
    version = metadata.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        raise BadFile(f"{path}: format version {version!r}, this mlxgpt reads 1 to {FORMAT_VERSION}; upgrade mlxgpt")
    try:
        header = Header.from_json(metadata["header"], int(version))
        if not 1 <= header.vocab_size <= MAX_VOCAB:
            raise ValueError(f"vocab_size {header.vocab_size}")
        return header
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(f"{path}: its header can't be read: {error}") from None


def _require_layout(path: Path, header: Header, entries: dict[str, Entry]) -> None:
    """Every weight with its shape; each optimizer tensor shaped as its weight; float32 throughout."""
    try:
        expected = shapes_of(header.config.model, header.vocab_size)
    except UserError as error:  # a part that this version does not have
        raise BadFile(f"{path}: {error}; upgrade mlxgpt, or use an earlier checkpoint") from None
    needed = [*expected] + [f"{OPTIMIZER}ema.{name}" for name in expected if header.averaged]
    for name in set(needed) - entries.keys():
        raise BadFile(f"{path}: {name} is missing")
    for name, found in entries.items():
        weight = name.removeprefix(OPTIMIZER).partition(".")[2] if name.startswith(OPTIMIZER) else name
        if weight not in expected:
            raise BadFile(f"{path}: {name} does not belong to this model")
        if found.shape != expected[weight] or found.dtype != "F32":
            raise BadFile(f"{path}: {name} is {found.dtype} {found.shape}, expected F32 {expected[weight]}")


def _digest(header: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def _json_float(x: float) -> float | str:
    """JSON has no infinity and no NaN; their names read back as floats."""
    return x if math.isfinite(x) else str(x)
