"""Stores the fastest settings that `mlxgpt bench --tune` found for each device and network."""

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
from mlx_gpt.paths import cache_dir


def settings_for(model: ModelConfig) -> dict[str, Any]:
    """The settings stored for this device and network; none if MLXGPT_TUNED=off."""
    if os.environ.get("MLXGPT_TUNED") == "off":
        return {}
    found = _remembered().get(_subject(model), {}).get("settings", {})
    try:
        resolve(overrides=found)
    except (UserError, AttributeError):  # another version wrote them
        return {}
    return found


def keep(model: ModelConfig, found: dict[str, Any]) -> Path:
    """Stores the result of a measurement for this device and network. Returns the path of the file."""
    path = _file()
    make_folder(path.parent)
    write_atomic(path, [json.dumps(_remembered() | {_subject(model): found}, indent=1).encode()])
    return path


def _file() -> Path:
    return cache_dir() / "tuned.json"


def _remembered() -> dict[str, dict]:
    try:
        found = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):  # there is no file yet, or it is damaged: the next measurement replaces it
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _subject(model: ModelConfig) -> str:
    """The device and the shape for which a measurement is valid, as a key of the file."""
    shape = ", ".join(f"{key}={value}" for key, value in model.shape().items())
    return f"{chip()} ({kind()}): {shape}"
