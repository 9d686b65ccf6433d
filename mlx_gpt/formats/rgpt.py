"""The RGPT0001, RGPT0002 and RGPT0003 files of randyGPT, read and written byte for byte.

    offset  type    field
    0       bytes   magic, "RGPT0001" to "RGPT0003"
    8       u32     vocab_size
    12      u32     iter: index of the last finished iteration
    16      u32     step: updates of the optimizer
    20      f32     best_loss
    24      f32     tensors in a fixed order

All numbers are little-endian. m and v are the moments of AdamW. RGPT0002 has the weights; RGPT0001 the weights, then m
and v of each tensor in turn; RGPT0003 the weights, all m, all v. The shape of the network is not in the file. It is
found from the file's length and the common shapes, or taken from the caller.
"""

import itertools
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_gpt.checkpoint.store import MAX_VOCAB, Checkpoint, Header, Tensors, require_finite
from mlx_gpt.config.presets import load_toml, names_of
from mlx_gpt.config.schema import SHAPE_KEYS, Config, ModelConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import num_params
from mlx_gpt.model.gpt import shapes_of

HEADER = struct.Struct("<8sIIIf")
MAGIC = {"rgpt0001": b"RGPT0001", "rgpt0002": b"RGPT0002", "rgpt0003": b"RGPT0003"}
U32_MAX = (1 << 32) - 1
# Shapes that randyGPT had before it had presets.
OLD_SHAPES = (
    {"n_embd": 128, "n_head": 8, "n_layer": 6, "block_size": 64},
    {"n_embd": 256, "n_head": 8, "n_layer": 6, "block_size": 64},
)

Shape = dict[str, int]


@dataclass(frozen=True)
class RGPT:
    """One of the three formats. They hold only randyGPT's network, and no tokenizer."""

    name: str
    is_folder = False

    def recognizes(self, path: Path) -> bool:
        return path.is_file() and _magic(path) == MAGIC[self.name]

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        return read(path, {k: v for k, v in (known or {}).items() if k in SHAPE_KEYS})

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        write(path, checkpoint, self.name)

    def refuses(self, config: Config) -> str | None:
        if extensions := config.model.extensions():
            return f"{self.name} holds only randyGPT's network, not {', '.join(extensions)}; keep the safetensors file"
        return None


def _magic(path: Path) -> bytes:
    with open(path, "rb") as f:
        return f.read(8)


def read(path: Path, known: Shape | None = None) -> Checkpoint:
    """Reads any of the three formats.

    Args:
        path: The file.
        known: Parts of the shape that the caller knows, such as {"n_embd": 256, "n_head": 8}.

    Raises:
        BadFile: The header is corrupt, the length does not match the shape, or a number is not finite. The length is
            checked before any tensor is read.
        UserError: The number of heads is not known.
    """
    with open(path, "rb") as f:
        length = os.fstat(f.fileno()).st_size
        magic, vocab_size, last_iter, step, best_loss = _read_header(path, f, length)
        model = _solve_shape(
            path, length, copies=1 if magic == b"RGPT0002" else 3, vocab_size=vocab_size, known=known or {}
        )
        shapes = shapes_of(model, vocab_size)
        groups = [_read_tensors(f, shapes)]
        if magic == b"RGPT0003":
            groups += [_read_tensors(f, shapes), _read_tensors(f, shapes)]
        elif magic == b"RGPT0001":
            pairs = {name: (_read_tensor(f, shape), _read_tensor(f, shape)) for name, shape in shapes.items()}
            groups += [{name: pair[i] for name, pair in pairs.items()} for i in (0, 1)]
    weights, *moments = groups
    optimizer = {f"{part}.{k}": t for part, group in zip("mv", moments, strict=False) for k, t in group.items()}
    require_finite(path, weights | optimizer)
    header = Header(
        config=Config(model=model), vocab_size=vocab_size, step=last_iter + 1, num_updates=step, best_loss=best_loss
    )
    return Checkpoint(header=header, weights=weights, optimizer=optimizer)


def write(path: Path, checkpoint: Checkpoint, format: str) -> None:
    """Writes one of the formats of MAGIC. Raises UserError if the format cannot hold the checkpoint."""
    header = checkpoint.header
    if reason := RGPT(format).refuses(header.config):
        raise UserError(reason)
    if format != "rgpt0002" and not has_moments(checkpoint):
        raise UserError(
            f"{format} holds both moments of AdamW for every weight, which this checkpoint does not have; choose "
            "--format rgpt0002"
        )
    if header.step < 1:
        raise UserError(f"{format} needs at least one finished iteration, this checkpoint has none; train it first")
    if max(header.step - 1, header.num_updates) > U32_MAX:
        raise UserError(
            f"{format} counts iterations in 32 bits, and {header.step} do not fit; keep the safetensors file"
        )
    shapes = shapes_of(header.config.model, header.vocab_size)
    tensors = [checkpoint.weights[name] for name in shapes]
    m, v = ([checkpoint.optimizer.get(f"{part}.{name}") for name in shapes] for part in "mv")
    if format == "rgpt0003":
        tensors += m + v
    elif format == "rgpt0001":
        tensors += itertools.chain.from_iterable(zip(m, v, strict=True))
    first = HEADER.pack(MAGIC[format], header.vocab_size, header.step - 1, header.num_updates, header.best_loss)
    write_atomic(path, itertools.chain([first], (t.astype("<f4", copy=False).tobytes() for t in tensors)))


def has_moments(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has both moments of AdamW for every weight."""
    return {f"{part}.{name}" for part in "mv" for name in checkpoint.weights} <= checkpoint.optimizer.keys()


def _read_header(path: Path, f: BinaryIO, length: int) -> tuple[bytes, int, int, int, float]:
    if length < HEADER.size:
        raise BadFile(f"{path}: has {length} bytes, and an RGPT header has {HEADER.size}; the file is truncated")
    magic, vocab_size, last_iter, step, best_loss = HEADER.unpack(f.read(HEADER.size))
    if magic not in MAGIC.values():
        raise BadFile(f"{path}: begins with {magic!r}, not with {', '.join(m.decode() for m in MAGIC.values())}")
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise BadFile(f"{path}: has a vocabulary of {vocab_size}, allowed are 1 to {MAX_VOCAB}; the file is corrupt")
    return magic, vocab_size, last_iter, step, best_loss


def _solve_shape(path: Path, length: int, *, copies: int, vocab_size: int, known: Shape) -> ModelConfig:
    """The shape whose file has exactly this length: the known one if it is complete, otherwise a common shape.

    Args:
        path: The file, for messages.
        length: Its length in bytes.
        copies: Number of tensors per weight: 1, or 3 with the moments.
        vocab_size: The file's vocabulary.
        known: Parts of the shape that the caller knows.

    Raises:
        BadFile: No shape, or more than one, has this length.
    """

    def size_of(shape: Shape) -> int:
        return HEADER.size + 4 * copies * num_params(ModelConfig(**{**shape, "n_head": 1}), vocab_size)

    given = {k: v for k, v in known.items() if k != "n_head"}
    if len(given) == 3:
        if size_of(given) != length:
            raise BadFile(
                f"{path}: has {length} bytes, and {_named(given)} with {vocab_size} ids needs {size_of(given)}; "
                f"{_what_fits(length, copies, vocab_size, {})}"
            )
        return ModelConfig(**given, n_head=known.get("n_head") or known_heads(path, given))
    fits = [s for s in _common_shapes() if size_of(s) == length and all(s[k] == v for k, v in given.items())]
    if len({(s["n_embd"], s["n_layer"], s["block_size"]) for s in fits}) != 1:
        raise BadFile(
            f"{path}: {length} bytes with {vocab_size} ids do not match a common shape"
            f"{' with ' + _named(given) if given else ''}; {_what_fits(length, copies, vocab_size, given)}; a "
            "truncated file matches none"
        )
    return ModelConfig(**{**fits[0], "n_head": known.get("n_head") or fits[0]["n_head"]})


def _common_shapes() -> list[Shape]:
    presets = [load_toml("presets", name)["model"] for name in names_of("presets")]
    return [ModelConfig(**p).shape() for p in presets] + list(OLD_SHAPES)


def known_heads(path: Path, given: Shape) -> int:
    """The number of heads of the common shapes with this width and context.

    Raises UserError if there is no such shape, or if their numbers of heads differ.
    """
    same = [s for s in _common_shapes() if all(s[k] == given[k] for k in ("n_embd", "block_size"))]
    heads = {s["n_head"] for s in same}
    if len(heads) != 1:
        raise UserError(f"{path}: the number of heads is not in the file; give it, as in --set model.n_head=4")
    return heads.pop()


def _what_fits(length: int, copies: int, vocab_size: int, given: Shape) -> str:
    """Lists up to four shapes whose file has this length, for messages.

    A network has 2 V C + block_size C + 12 L C^2 parameters. The search solves this for L.
    """
    params, rest = divmod(length - HEADER.size, 4 * copies)
    fits = []
    for block, C in itertools.product((64, 128, 256, 512, 1024), range(4, 1025, 4)):
        layers, uneven = divmod(params - C * (2 * vocab_size + block), 12 * C * C)
        shape = {"n_embd": C, "n_layer": layers, "block_size": block}
        if not (rest or uneven) and 1 <= layers <= 64 and all(shape[k] == v for k, v in given.items()):
            fits.append(_named(shape))
    return "shapes that match: " + " or ".join(fits[:4]) if fits else "no shape matches this length"


def _named(shape: Shape) -> str:
    return " ".join(f"{k}={v}" for k, v in shape.items())


def _read_tensors(f: BinaryIO, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: _read_tensor(f, shape) for name, shape in shapes.items()}


def _read_tensor(f: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    return np.fromfile(f, "<f4", math.prod(shape)).reshape(shape)
