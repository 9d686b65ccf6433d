"""The RGPT0001, RGPT0002 and RGPT0003 files of randyGPT, read and written byte for byte.

Little-endian: magic (8 bytes), vocab_size, iter, step (u32), best_loss (f32), then float32 tensors in a fixed order.
0002 holds the weights; 0001 the weights, then m and v of each tensor in turn; 0003 the weights, all m, all v. The shape
is not in the file: it follows from the file's length and the known shapes, or from what the caller says.
"""

import itertools
import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlx_gpt.checkpoint.store import MAX_VOCAB, Checkpoint, Header, Tensors, require_finite
from mlx_gpt.config.presets import load_toml, names_of
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import num_params
from mlx_gpt.model.gpt import shapes_of

HEADER = struct.Struct("<8sIIIf")
FORMATS = {"rgpt0001": b"RGPT0001", "rgpt0002": b"RGPT0002", "rgpt0003": b"RGPT0003"}
U32_MAX = (1 << 32) - 1
# Shapes of randyGPT before its presets.
OLD_SHAPES = (
    {"n_embd": 128, "n_head": 8, "n_layer": 6, "block_size": 64},
    {"n_embd": 256, "n_head": 8, "n_layer": 6, "block_size": 64},
)

Shape = dict[str, int]


def is_rgpt(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(8) in FORMATS.values()


def read(path: Path, wanted: Shape | None = None) -> Checkpoint:
    """Reads any of the three formats. `wanted`: known parts of the shape, as {"n_embd": 256, "n_head": 8}.

    Raises BadFile unless the file is exactly as long as its shape demands and all its numbers are finite.
    Nothing is read before the length is known to be right.
    """
    with open(path, "rb") as f:
        length = os.fstat(f.fileno()).st_size
        magic, vocab_size, last_iter, step, best_loss = _read_header(path, f, length)
        model = _solve_shape(
            path, length, copies=1 if magic == b"RGPT0002" else 3, vocab_size=vocab_size, wanted=wanted or {}
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
    """Writes one of FORMATS. Raises UserError for what the format can't hold."""
    header = checkpoint.header
    if extensions := header.config.model.extensions():
        raise UserError(
            f"{format} holds randyGPT's network alone, not {', '.join(extensions)}; keep the safetensors file"
        )
    if format != "rgpt0002" and not has_moments(checkpoint):
        raise UserError(
            f"{format} holds AdamW's two moments of every weight and this checkpoint has not; write --format rgpt0002"
        )
    if header.step < 1:
        raise UserError(f"{format} counts finished iterations from 0 and this checkpoint has none; train it first")
    if max(header.step - 1, header.num_updates) > U32_MAX:
        raise UserError(f"{format} counts iterations in 32 bits; {header.step} is too many")
    shapes = shapes_of(header.config.model, header.vocab_size)
    tensors = [checkpoint.weights[name] for name in shapes]
    m, v = ([checkpoint.optimizer.get(f"{part}.{name}") for name in shapes] for part in "mv")
    if format == "rgpt0003":
        tensors += m + v
    elif format == "rgpt0001":
        tensors += itertools.chain.from_iterable(zip(m, v, strict=True))
    first = HEADER.pack(FORMATS[format], header.vocab_size, header.step - 1, header.num_updates, header.best_loss)
    write_atomic(path, itertools.chain([first], (t.astype("<f4", copy=False).tobytes() for t in tensors)))


def has_moments(checkpoint: Checkpoint) -> bool:
    """Whether both of AdamW's moments are there for every weight."""
    return {f"{part}.{name}" for part in "mv" for name in checkpoint.weights} <= checkpoint.optimizer.keys()


def _read_header(path: Path, f: BinaryIO, length: int) -> tuple[bytes, int, int, int, float]:
    if length < HEADER.size:
        raise BadFile(f"{path}: {length} bytes, an RGPT header alone has {HEADER.size}; the file is truncated")
    magic, vocab_size, last_iter, step, best_loss = HEADER.unpack(f.read(HEADER.size))
    if magic not in FORMATS.values():
        raise BadFile(f"{path}: begins with {magic!r}, not with {', '.join(m.decode() for m in FORMATS.values())}")
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise BadFile(f"{path}: a vocabulary of {vocab_size}, 1 to {MAX_VOCAB} is possible; the file is corrupt")
    return magic, vocab_size, last_iter, step, best_loss


def _solve_shape(path: Path, length: int, *, copies: int, vocab_size: int, wanted: Shape) -> ModelConfig:
    """The one shape, of those known or the one said in full, whose file is exactly this long."""

    def size_of(shape: Shape) -> int:
        return HEADER.size + 4 * copies * num_params(ModelConfig(**{**shape, "n_head": 1}), vocab_size)

    said = {k: v for k, v in wanted.items() if k != "n_head"}
    if len(said) == 3:
        if size_of(said) != length:
            raise BadFile(
                f"{path}: {length} bytes, {_named(said)} with {vocab_size} ids needs {size_of(said)}; "
                f"{_what_fits(length, copies, vocab_size, {})}"
            )
        return ModelConfig(**said, n_head=wanted.get("n_head") or known_heads(path, said))
    fits = [s for s in _known_shapes() if size_of(s) == length and all(s[k] == v for k, v in said.items())]
    if len({(s["n_embd"], s["n_layer"], s["block_size"]) for s in fits}) != 1:
        raise BadFile(
            f"{path}: {length} bytes with {vocab_size} ids is no known shape{' ' + _named(said) if said else ''}; "
            f"{_what_fits(length, copies, vocab_size, said)}; a truncated file fits none"
        )
    return ModelConfig(**{**fits[0], "n_head": wanted.get("n_head") or fits[0]["n_head"]})


def _known_shapes() -> list[Shape]:
    presets = [load_toml("presets", name)["model"] for name in names_of("presets")]
    return [ModelConfig(**p).shape() for p in presets] + list(OLD_SHAPES)


def known_heads(path: Path, said: Shape) -> int:
    """The heads of the known shapes of this width and context. Raises UserError where none or several are."""
    heads = {
        s["n_head"] for s in _known_shapes() if (s["n_embd"], s["block_size"]) == (said["n_embd"], said["block_size"])
    }
    if len(heads) != 1:
        raise UserError(f"{path}: the number of heads can't be told from the file; say it, as --set model.n_head=4")
    return heads.pop()


def _what_fits(length: int, copies: int, vocab_size: int, said: Shape) -> str:
    """Shapes of this length, beyond the known ones, to choose from: P = 2VC + block C + 12 L C^2."""
    params, rest = divmod(length - HEADER.size, 4 * copies)
    fits = []
    for block, C in itertools.product((64, 128, 256, 512, 1024), range(4, 1025, 4)):
        layers, uneven = divmod(params - C * (2 * vocab_size + block), 12 * C * C)
        shape = {"n_embd": C, "n_layer": layers, "block_size": block}
        if not (rest or uneven) and 1 <= layers <= 64 and all(shape[k] == v for k, v in said.items()):
            fits.append(_named(shape))
    return "what would fit: " + " or ".join(fits[:4]) if fits else "nothing of this length fits"


def _named(shape: Shape) -> str:
    return " ".join(f"{k}={v}" for k, v in shape.items())


def _read_tensors(f: BinaryIO, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: _read_tensor(f, shape) for name, shape in shapes.items()}


def _read_tensor(f: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    return np.fromfile(f, "<f4", math.prod(shape)).reshape(shape)
