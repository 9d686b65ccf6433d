"""safetensors files: mlxgpt's own checkpoints, and PyTorch state_dicts with randyGPT's tensor names.

Checkpoints are read and written. A state_dict can only be read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.schema import Config
from mlx_gpt.formats.huggingface.folder import read_state_dict


class Safetensors:
    """The format of mlxgpt's own checkpoints. It can hold every network. read() also accepts a state_dict."""

    name, is_folder = "safetensors", False

    def recognizes(self, path: Path) -> bool:
        return path.is_file() and (path.suffix == ".safetensors" or store.is_safetensors(path))

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        return store.load(path) if store.is_ours(path) else read_state_dict(path, known or {})

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        store.save(path, checkpoint)

    def refuses(self, config: Config) -> str | None:
        return None
