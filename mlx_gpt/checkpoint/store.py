"""The checkpoint: one safetensors file with a header in its metadata.

All tensors are float32, except the codes of packed matrices, which are uint8. They are the weights, under their own
names, and the state of the optimizer, under the names `optimizer.<part>.<weight>`, such as `optimizer.m.wte.weight`.
The parts are `m` and `v`, the moments, `rows`, the second moments of rows, and `ema`, the exponential moving average of
the weights. The metadata holds `format`, `format_version`, `header` (a `Header` as JSON) and `sha256`, the hash of the
header and of the names and the bytes of all tensors, in the order of the names.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np

from mlx_gpt.checkpoint.container import Entry, read_header, read_tensors, serialized
from mlx_gpt.config.schema import MAX_VOCAB, Config
from mlx_gpt.config.table import merge
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.specs import state_shape
from mlx_gpt.parse import parse_json, reading

DTYPES = {"float32": "F32", "uint8": "U8"}  # the types of weights, by their names in specs
FORMAT, FORMAT_VERSION = "mlxgpt", 6
OPTIMIZER = "optimizer."

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Everything in a checkpoint that is not a tensor: the settings and the progress of a run.

    Attributes:
        config: The settings.
        vocab_size: The number of token ids, V.
        step: The number of finished training steps.
        num_updates: The number of updates since the optimizer state was initialized. A step whose loss or gradient is
            not finite makes none. A run that resumes without the optimizer's moments starts again at 0.
        best_loss: The lowest validation loss so far, in nats per token; infinity before the first evaluation.
        best_step: The step of the evaluation that found it.
        bad_evals: Evaluations since the last new best loss or the last cut of the learning rate.
        num_lr_cuts: How often the learning rate has been cut because `train.patience` ran out.
        last_eval: The step of the last evaluation; -1 before the first one.
        planned: Whether `train.iters` has been computed from the time budget, `train.minutes`.
        averaged: Whether the weights in this checkpoint are the moving average. If so, the optimizer tensors
            ema.<weight> are the trained weights. If not, they are the average, or absent if none is kept.
        tokens: The number of training tokens so far.
        elapsed: Seconds of training so far, including those before the run was resumed.
        tokenizer: The result of the tokenizer's to_dict(); None if the checkpoint contains no tokenizer.
        corpus: The SHA-256 fingerprint of the corpus; None if it is not known.
        division: The number of documents of each source of the corpus; None if it is not known.
        source: The position of the source of batches; None to start from its beginning.
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
    division: list[int] | None = None
    source: dict | None = None

    @property
    def iteration(self) -> int:
        """Old name of `step`."""
        return self.step

    def to_json(self) -> str:
        """The header as JSON, with sorted keys. A best loss that is not finite becomes a string, such as "inf"."""
        data = dataclasses.asdict(self) | {"best_loss": _json_float(self.best_loss)}
        return json.dumps(data, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, version: int = FORMAT_VERSION) -> "Header":
        """Reads the header of a file with the given format version, and converts it to the current version.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: The text is not a valid header of this version.
        """
        data = parse_json(text, "header")
        for migrate in MIGRATIONS[version - 1 :]:
            data = migrate(data)
        if data["best_loss"] in ("inf", "-inf", "nan"):  # as _json_float() writes them
            data = data | {"best_loss": float(data["best_loss"])}
        header = cls(**data | {"config": Config.from_dict(data["config"])})
        header._require_types()
        return header

    def _require_types(self) -> None:
        """Raises ValueError unless every field has its declared type, counts are not negative and the kind is known."""
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type) or (field.type,)
            kinds = tuple(get_origin(kind) or kind for kind in kinds)  # list instead of list[int]
            is_float = float in kinds and type(value) is int
            lowest = -1 if field.name == "last_eval" else 0
            if not (type(value) in kinds or is_float) or (type(value) is int and value < lowest):
                expected = " or ".join(kind.__name__ for kind in kinds) + (
                    f" of at least {lowest}" if int in kinds else ""
                )
                raise ValueError(f"{field.name} is {str(value)[:60]!r}, expected {expected}")
        if self.tokenizer is not None and not isinstance(self.tokenizer.get("kind"), str):
            raise ValueError("tokenizer has no kind")
        if not all(type(count) is int and count >= 0 for count in self.division or []):
            raise ValueError("division is not a list of counts")


def _from_version_1(data: dict) -> dict:
    """Converts a header of version 1 to version 2.

    Version 1 did not write settings that had their defaults. Some of these defaults have changed since, so the old ones
    are filled in.
    """
    before = {"optimizer": {"name": "adamw", "schedule": "cosine"}, "train": {"shuffle": False}}
    return data | {"config": merge(before, data["config"])}


def _from_version_2(data: dict) -> dict:
    """Converts a header of version 2 to version 3.

    Version 2 called the step `iteration` and the number of updates `step`. It had no `source`: the number of
    windows read so far is computed from its field `tokens`, since each window has block_size tokens.
    """
    names = {"step": "num_updates", "iteration": "step", "best_iteration": "best_step", "lr_cuts": "num_lr_cuts"}
    windows = data.get("tokens", 0) // Config.from_dict(data["config"]).model.block_size
    return {names.get(key, key): value for key, value in data.items()} | {"source": {"windows": windows}}


def _from_version_3(data: dict) -> dict:
    """Converts a header of version 3 to version 4.

    Muon's learning rate was absolute in version 3. It is relative in version 4: Config.from_dict() computes the ratio.
    Version 1 did not write defaults, so the two rates may be missing.
    """
    rates = {"optimizer": {"learning_rate": 3e-3, "muon_learning_rate": 0.02}}
    return data | {"config": merge(rates, data["config"])}


def _from_version_4(data: dict) -> dict:
    """Converts a header of version 4, which did not hold the division of the corpus, to version 5."""
    if "division" in data:  # the hash does not cover the version of the file
        raise ValueError("version 4 has no field division")
    return data | {"division": None}


def _from_version_5(data: dict) -> dict:
    """Converts a header of version 5, in which Muon had only one iteration, to version 6."""
    return data | {"config": merge({"optimizer": {"newton_schulz": "jordan"}}, data["config"])}


# MIGRATIONS[i] converts a header of version i + 1 to version i + 2.
MIGRATIONS = (_from_version_1, _from_version_2, _from_version_3, _from_version_4, _from_version_5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The state of a run after one of its steps.

    Attributes:
        header: Settings and progress.
        weights: float32 arrays by name, and the uint8 codes of packed matrices.
        optimizer: float32 arrays by name, such as "m.wte.weight": the part, then the weight.
    """

    header: Header
    weights: Tensors
    optimizer: Tensors

    def as_trained(self) -> "Checkpoint":
        """The same state with the trained weights as `weights`, and their average, if any, as optimizer tensors."""
        if not self.header.averaged:
            return self
        trained = {name: self.optimizer[f"ema.{name}"] for name in self.weights}
        average = {f"ema.{name}": w for name, w in self.weights.items()}
        header = dataclasses.replace(self.header, averaged=False)
        return Checkpoint(header=header, weights=trained, optimizer=self.optimizer | average)

    def as_averaged(self) -> "Checkpoint":
        """The same state with the average as `weights`, and the trained weights as the optimizer tensors ema.<weight>.

        This is the inverse of as_trained(). The checkpoint must have the optimizer tensors ema.<weight>.
        """
        average = {name: self.optimizer[f"ema.{name}"] for name in self.weights}
        trained = {f"ema.{name}": w for name, w in self.weights.items()}
        header = dataclasses.replace(self.header, averaged=True)
        return Checkpoint(header=header, weights=average, optimizer=self.optimizer | trained)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: if writing fails, an earlier file at `path` stays unchanged.

    Raises:
        OutOfRoom: The disk is full.
        UserError: The file cannot be written.
    """
    tensors = checkpoint.weights | {OPTIMIZER + k: t for k, t in checkpoint.optimizer.items()}
    tensors = {k: np.ascontiguousarray(t) for k, t in tensors.items()}  # the hash reads memory in C order
    header = checkpoint.header.to_json()
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "header": header,
        "sha256": digest(header, tensors),
    }
    write_atomic(path, serialized(tensors, metadata))


def load(path: Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Verifies the container, the header, the names, shapes and dtypes of the tensors, and the hash. All values must be
    finite.

    Raises:
        BadFile: One of these checks fails. The message names the file and the failure.
        UserError: There is no such file.
    """
    header, tensors = _read(path)
    weights = {k: t for k, t in tensors.items() if not k.startswith(OPTIMIZER)}
    optimizer = {k.removeprefix(OPTIMIZER): t for k, t in tensors.items() if k.startswith(OPTIMIZER)}
    return Checkpoint(header=header, weights=weights, optimizer=optimizer)


def is_safetensors(path: Path) -> bool:
    """Whether the file begins like a safetensors file: 8 bytes for the length of the header, then "{"."""
    with reading(path) as f:
        return f.read(9)[8:] == b"{"


def is_ours(path: Path) -> bool:
    """Whether the metadata of a safetensors file say that it is an mlxgpt checkpoint. Raises BadFile."""
    return read_header(path)[1].get("format") == FORMAT


def require_finite(path: Path, tensors: Tensors) -> None:
    """Raises BadFile for the first tensor that holds an infinity or a NaN."""
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise BadFile(f"{path}: {name} holds values that are not finite; use an earlier checkpoint")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Describes the keys of `ours` whose values differ in `theirs`, as "n_embd 256, the file has 128; ..."."""
    return "; ".join(f"{k} {ours[k]}, the file has {theirs[k]}" for k in ours if ours[k] != theirs[k])


def _read(path: Path) -> tuple[Header, Tensors]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entries, metadata = read_header(path)
    header = _header(path, metadata)
    _require_layout(path, header, entries)
    tensors = read_tensors(path, entries)
    if metadata.get("sha256") != digest(metadata["header"], tensors):
        raise BadFile(f"{path}: its content doesn't match its SHA-256, the file is corrupt; use an earlier checkpoint")
    require_finite(path, tensors)
    return header, tensors


def _header(path: Path, metadata: dict[str, str]) -> Header:
    if metadata.get("format") != FORMAT or "header" not in metadata:
        raise BadFile(f"{path}: is a safetensors file, but not an mlxgpt checkpoint")
    version = metadata.get("format_version", "")
    if version not in map(str, range(1, FORMAT_VERSION + 1)):
        raise BadFile(
            f"{path}: has format version {version!r}, but this mlxgpt reads 1 to {FORMAT_VERSION}; upgrade mlxgpt"
        )
    try:
        header = Header.from_json(metadata["header"], int(version))
        if not 1 <= header.vocab_size <= MAX_VOCAB:
            raise ValueError(f"vocab_size {header.vocab_size}")
        return header
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFile(f"{path}: its header can't be read: {error}") from None


def _require_layout(path: Path, header: Header, entries: dict[str, Entry]) -> None:
    """Raises BadFile unless the tensors are those of the header's network.

    Every weight must be there with its shape and its type, and every ema.<weight> if the header says that the weights
    are averaged. Every other tensor must be a float32 optimizer tensor with the shape that its part has.
    """
    try:
        expected = GPT.specs(header.config.model, header.vocab_size)
    except UserError as error:  # a setting names a mixer or another part that this version does not have
        raise BadFile(f"{path}: {error}; upgrade mlxgpt, or use an earlier checkpoint") from None
    needed = [*expected] + [f"{OPTIMIZER}ema.{name}" for name in expected if header.averaged]
    for name in set(needed) - entries.keys():
        raise BadFile(f"{path}: {name} is missing")
    for name, found in entries.items():
        is_state = name.startswith(OPTIMIZER)
        part, _, of_weight = name.removeprefix(OPTIMIZER).partition(".")
        weight = expected.get(of_weight if is_state else name)
        if not weight:
            raise BadFile(f"{path}: {name} does not belong to this model")
        dtype = "F32" if is_state else DTYPES[weight.dtype]
        shape = state_shape(part, weight.shape) if is_state else weight.shape
        if found.shape != shape or found.dtype != dtype:
            raise BadFile(f"{path}: {name} is {found.dtype} {found.shape}, expected {dtype} {shape}")


def digest(header: str, tensors: Tensors) -> str:
    """The SHA-256, in hexadecimal, of the header and of each tensor's name and bytes, in the order of the names."""
    sha256 = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].data)
    return sha256.hexdigest()


def _json_float(x: float) -> float | str:
    """Returns x if it is finite. Otherwise returns "inf", "-inf" or "nan", since JSON has no such numbers.

    float() converts each of these strings back.
    """
    return x if math.isfinite(x) else str(x)
