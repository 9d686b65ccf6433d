"""Reads and writes the RGPT0001, RGPT0002 and RGPT0003 files of randyGPT. A file that is read and written again is
identical, byte for byte.

    offset  type    field
    0       bytes   magic, "RGPT0001" to "RGPT0003"
    8       u32     vocab_size
    12      u32     iter: index of the last finished iteration, counted from 0
    16      u32     step: number of updates of the optimizer
    20      f32     best_loss: lowest validation loss
    24      f32     elements of the tensors, in the order of `shapes_of`

All numbers are little-endian. The tensors are the weights and, in two of the formats, the first moment m and the second
moment v of AdamW. For two weights a and b, the formats hold:

    RGPT0001    a b  m(a) v(a) m(b) v(b)
    RGPT0002    a b
    RGPT0003    a b  m(a) m(b) v(a) v(b)

The shape of the network is not in the file. The caller gives it, or it is found from the length of the file: it is the
shape of the preset that needs exactly this length. Example: model-xs with 67 ids has 529,656 parameters, so its
RGPT0002 file has 24 + 4 * 529,656 = 2,118,648 bytes.
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

from mlx_gpt.checkpoint.container import read_array
from mlx_gpt.checkpoint.store import Checkpoint, Header, Tensors, require_finite
from mlx_gpt.config.presets import names_of, preset_network
from mlx_gpt.config.schema import MAX_VOCAB, SHAPE_KEYS, Config, ModelConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import num_params
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.parse import reading

HEADER = struct.Struct("<8sIIIf")
MAGIC = {"rgpt0001": b"RGPT0001", "rgpt0002": b"RGPT0002", "rgpt0003": b"RGPT0003"}
U32_MAX = (1 << 32) - 1

Shape = dict[str, int]


@dataclass(frozen=True)
class RGPT:
    """One of the three RGPT formats. They hold only randyGPT's network, and no tokenizer.

    Args:
        name: A key of MAGIC.
    """

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
    """The first 8 bytes of a file."""
    with reading(path) as f:
        return f.read(8)


def read(path: Path, known: Shape | None = None) -> Checkpoint:
    """Reads any of the three formats.

    Args:
        path: The file.
        known: Settings of SHAPE_KEYS that the caller knows, such as {"n_embd": 256, "n_head": 8}.

    Returns:
        A checkpoint without a tokenizer. Its optimizer tensors are "m.<weight>" and "v.<weight>", or none for RGPT0002.

    Raises:
        BadFile: The header is corrupt, the length does not match the shape, or a tensor has values that are not finite.
            The length is checked before any tensor is read.
        UserError: The number of heads is not known, or it does not divide n_embd.
    """
    with reading(path) as f:
        length = os.fstat(f.fileno()).st_size
        magic, vocab_size, last_iter, step, best_loss = _read_header(path, f)
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
    """Writes a checkpoint as an RGPT file.

    Args:
        path: The file to write or replace.
        checkpoint: The checkpoint.
        format: A key of MAGIC.

    Raises:
        UserError: The format cannot hold the checkpoint, or the file cannot be written.
        OutOfRoom: The disk is full.
    """
    header = checkpoint.header
    if reason := RGPT(format).refuses(header.config):
        raise UserError(reason)
    if format != "rgpt0002" and not has_moments(checkpoint):
        raise UserError(
            f"{format} holds both moments of AdamW for every weight, but this checkpoint does not have them; choose "
            "--format rgpt0002"
        )
    if header.step < 1:
        # The file stores the index of the last finished iteration, step - 1.
        raise UserError(f"{format} needs at least one finished iteration, but this checkpoint has none; train it first")
    if max(header.step - 1, header.num_updates) > U32_MAX:
        raise UserError(
            f"{format} counts iterations in 32 bits, but {header.step} does not fit; keep the safetensors file"
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


def _read_header(path: Path, f: BinaryIO) -> tuple[bytes, int, int, int, float]:
    """Reads and checks the first 24 bytes. Returns the magic, vocab_size, iter, step and best_loss."""
    head = f.read(HEADER.size)
    if len(head) < HEADER.size:
        raise BadFile(f"{path}: has {len(head)} bytes, but an RGPT header has {HEADER.size}; the file is truncated")
    magic, vocab_size, last_iter, step, best_loss = HEADER.unpack(head)
    if magic not in MAGIC.values():
        raise BadFile(f"{path}: begins with {magic!r}, not with {', '.join(m.decode() for m in MAGIC.values())}")
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise BadFile(
            f"{path}: has a vocabulary of {vocab_size} ids, but 1 to {MAX_VOCAB} are allowed; the file is corrupt"
        )
    return magic, vocab_size, last_iter, step, best_loss


def _solve_shape(path: Path, length: int, *, copies: int, vocab_size: int, known: Shape) -> ModelConfig:
    """Finds the shape of a network whose file has exactly this length.

    If `known` has n_embd, n_layer and block_size, the file must have their length. Otherwise the shape is that of the
    preset that has this length and the known sizes. The number of heads does not change the length. It is taken from
    `known`, otherwise from a preset.

    Args:
        path: The file, for messages.
        length: Its length in bytes.
        copies: The number of tensors that the file holds for each weight: 1, or 3 with the moments.
        vocab_size: The number of token ids.
        known: Settings of SHAPE_KEYS that the caller knows.

    Raises:
        BadFile: The length is not that of the known sizes, or not that of exactly one preset.
        UserError: The number of heads is not known, or it does not divide n_embd.
    """

    def size_of(shape: Shape) -> int:
        # n_head=1 is a valid number of heads for every width.
        return HEADER.size + 4 * copies * num_params(ModelConfig(**{**shape, "n_head": 1}), vocab_size)

    given = {k: v for k, v in known.items() if k != "n_head"}
    if len(given) == 3:
        if size_of(given) != length:
            raise BadFile(
                f"{path}: has {length} bytes, but {_named(given)} with {vocab_size} ids needs {size_of(given)}; "
                f"{_what_fits(length, copies, vocab_size, {})}"
            )
        return ModelConfig(**given, n_head=known.get("n_head") or known_heads(path, given))
    fits = [s for s in _preset_shapes() if size_of(s) == length and all(s[k] == v for k, v in given.items())]
    if len({(s["n_embd"], s["n_layer"], s["block_size"]) for s in fits}) != 1:
        raise BadFile(
            f"{path}: its length, {length} bytes with {vocab_size} ids, does not match the shape of exactly one preset"
            f"{' with ' + _named(given) if given else ''}; {_what_fits(length, copies, vocab_size, given)}; a "
            "truncated file matches no shape"
        )
    return ModelConfig(**{**fits[0], "n_head": known.get("n_head") or fits[0]["n_head"]})


def _preset_shapes() -> list[Shape]:
    """The shapes of the presets with randyGPT's network."""
    networks = map(preset_network, names_of("presets"))
    return [network.shape() for network in networks if not network.extensions()]


def known_heads(path: Path, given: Shape) -> int:
    """The number of heads of the presets that have the given n_embd and block_size.

    Args:
        path: The file, for the message.
        given: A shape with at least n_embd and block_size.

    Raises:
        UserError: There is no such preset, or their numbers of heads differ.
    """
    same = [s for s in _preset_shapes() if all(s[k] == given[k] for k in ("n_embd", "block_size"))]
    heads = {s["n_head"] for s in same}
    if len(heads) != 1:
        raise UserError(f"{path}: does not contain the number of heads; give it, as in --set model.n_head=4")
    return heads.pop()


def _what_fits(length: int, copies: int, vocab_size: int, given: Shape) -> str:
    """Lists up to four shapes whose file has this length, for messages.

    With V = vocab_size, C = n_embd and L = n_layer, randyGPT's network has 2 V C + block_size C + 12 L C^2 parameters:
    the embedding and the head, the positions, and for each layer 4 C^2 of attention and 8 C^2 of the feed-forward
    network. For each block_size and C that is tried, this equation is solved for L.
    """
    params, rest = divmod(length - HEADER.size, 4 * copies)
    fits = []
    for block, C in itertools.product((64, 128, 256, 512, 1024), range(4, 1025, 4)):
        layers, uneven = divmod(params - C * (2 * vocab_size + block), 12 * C * C)
        shape = {"n_embd": C, "n_layer": layers, "block_size": block}
        if not (rest or uneven) and 1 <= layers <= 64 and all(shape[k] == v for k, v in given.items()):
            fits.append(shape)
    if not fits:
        return "no shape matches this length"
    options = " ".join(f"--set model.{k}={v}" for k, v in fits[0].items())
    found = " or ".join(map(_named, fits[:4]))
    return f"shapes that match: {found}; give one with its number of heads, as in {options} --set model.n_head=4"


def _named(shape: Shape) -> str:
    """A shape as text, such as "n_embd=256 n_layer=6"."""
    return " ".join(f"{k}={v}" for k, v in shape.items())


def _read_tensors(f: BinaryIO, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: _read_tensor(f, shape) for name, shape in shapes.items()}


def _read_tensor(f: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    return read_array(f, "<f4", math.prod(shape)).reshape(shape)
