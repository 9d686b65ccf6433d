"""Stores the fastest settings that `mlxgpt bench --tune` found for each device and network shape (four sizes).

They are stored in tuned.json, a file in the user's cache folder.
"""

import json
import os
from pathlib import Path
from typing import Any

from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import kind
from mlx_gpt.device.report import chip
from mlx_gpt.errors import UserError
from mlx_gpt.files import make_folder, write_atomic
from mlx_gpt.parse import read_json
from mlx_gpt.paths import cache_dir


def settings_for(model: ModelConfig) -> dict[str, Any]:
    """Returns the settings stored for this device and network, by dotted name.

    Returns no settings if there are none for this device and network, if this version does not accept them, or if the
    environment variable MLXGPT_TUNED is "off".
    """
    if os.environ.get("MLXGPT_TUNED") == "off":
        return {}
    found = _stored().get(_key(model), {}).get("settings", {})
    try:
        resolve(overrides=found)
    except (UserError, AttributeError):  # another version of mlxgpt wrote the file
        return {}
    return found


def keep(model: ModelConfig, found: dict[str, Any]) -> Path:
    """Stores the result of a measurement for this device and network, in place of an earlier one.

    Args:
        model: The network that was measured.
        found: The result of `bench.tuner.tune`. Its entry "settings" holds the fastest settings by dotted name.

    Returns:
        The path of the file.

    Raises:
        UserError, OutOfRoom: The file cannot be written.
    """
    path = _file()
    make_folder(path.parent)
    write_atomic(path, [json.dumps(_stored() | {_key(model): found}, indent=1).encode()])
    return path


def _file() -> Path:
    return cache_dir() / "tuned.json"


def _stored() -> dict[str, dict]:
    """The content of the file: the stored results by _key()."""
    try:
        found = read_json(_file())
    except UserError:  # there is no file yet, or it is corrupt: keep() replaces it
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _key(model: ModelConfig) -> str:
    """The key of a result in the file: the device and the shape of the network for which the result is valid."""
    shape = ", ".join(f"{key}={value}" for key, value in model.shape().items())
    return f"{chip()} ({kind()}): {shape}"
