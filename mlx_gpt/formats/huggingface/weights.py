"""The weights of a folder for transformers or mlx-lm: one safetensors file, or several and an index."""

from pathlib import Path

import safetensors.numpy

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.container import read_header, read_tensors
from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.parse import read_object

# Tensors that old versions of transformers wrote and that are no weights end so.
UNUSED = ".rotary_emb.inv_freq"


def write_weights(folder: Path, names: dict[str, str], weights: Tensors) -> Path:
    """Writes model.safetensors, with the metadata {"format": "pt"} that transformers requires.

    Args:
        folder: The folder.
        names: The names of the weights in the file, by our names.
        weights: The weights by our names, or their quantized form, see quantize().

    Returns:
        The path of the file.
    """
    path, named = folder / "model.safetensors", {}
    stems = {ours.removesuffix("weight"): theirs.removesuffix("weight") for ours, theirs in names.items()}
    for name, tensor in weights.items():
        stem, dot, part = name.rpartition(".")  # the parts of a quantized weight are weight, scales and biases
        named[stems[stem + dot] + part] = tensor
    write_atomic(path, [safetensors.numpy.save(named, {"format": "pt"})])
    return path


def read_weights(folder: Path, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Reads the weights of a folder, from model.safetensors or from the several files of its index.

    Args:
        folder: The folder.
        names: The names of the weights in the files, by our names.
        shapes: The shapes of the weights, by our names.

    Returns:
        The weights by our names.

    Raises:
        BadFile, UserError: As for read_file().
    """
    expected, index = {theirs: shapes[ours] for ours, theirs in names.items()}, folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        found = read_file(folder / "model.safetensors", expected)
    else:
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(Path(str(file)).name == file for file in files.values()):
            raise BadFile(f"{index}: has no weight_map from tensors to names of files")
        if absent := expected.keys() - files.keys():
            raise BadFile(f"{index}: {min(absent)} is missing")
        found = {}
        for file in sorted({files[name] for name in expected}):
            found |= read_file(folder / file, {name: s for name, s in expected.items() if files[name] == file})
    return {ours: found[theirs] for ours, theirs in names.items()}


def read_file(path: Path, expected: dict[str, tuple[int, ...]]) -> Tensors:
    """Reads the tensors of a safetensors file as float32.

    Args:
        path: The file.
        expected: The shape of every tensor by its name.

    Raises:
        BadFile: The file is corrupt, its tensors are not exactly the expected ones, or a value is not finite.
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entries = {name: entry for name, entry in read_header(path)[0].items() if not name.endswith(UNUSED)}
    for name in expected.keys() - entries.keys():
        raise BadFile(f"{path}: {name} is missing")
    for name, entry in entries.items():
        if name not in expected:
            raise BadFile(f"{path}: {name} (at byte {entry.first}) does not belong to this model")
        if entry.shape != expected[name] or entry.dtype not in ("F32", "F16", "BF16"):
            raise BadFile(
                f"{path}: {name} (at byte {entry.first}) is {entry.dtype} {entry.shape}, expected F32, F16 or BF16 "
                f"{expected[name]}"
            )
    weights = read_tensors(path, entries)
    store.require_finite(path, weights)
    return weights
