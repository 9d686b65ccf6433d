"""The formats of checkpoints: their protocol and their table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import BadFile
from mlx_gpt.formats.huggingface.folder import TARGETS, Folder
from mlx_gpt.formats.rgpt import MAGIC, RGPT
from mlx_gpt.formats.safetensors import Safetensors


class Format(Protocol):
    """A format of checkpoints. A new format is a class in its own file and a row of FORMATS.

    Attributes:
        name: The name on the command line.
        is_folder: Whether a checkpoint is a folder, not a file.
    """

    name: str
    is_folder: bool

    def recognizes(self, path: Path) -> bool:
        """Whether an existing file or folder has this format. Reads only what is needed to decide."""

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        """Reads and verifies a checkpoint.

        Args:
            path: A file or folder that recognizes() accepts.
            known: Settings of [model] that the caller knows, for formats that do not contain all of them.

        Raises:
            BadFile: The file is corrupt. The message names the place in it.
            UserError: A required setting is neither in the file nor in `known`.
        """

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: The format cannot hold the checkpoint, for the reason of refuses() or because of its state.
        """

    def refuses(self, config: Config) -> str | None:
        """The reason why the format cannot hold a network of this configuration; None if it can."""


# A path belongs to the first row that recognizes it.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (*(Folder(target) for target in TARGETS), *(RGPT(name) for name in MAGIC), Safetensors())
}


def format_of(path: Path) -> Format:
    """The format of an existing file or folder. Raises BadFile if it has none of FORMATS."""
    for format in FORMATS.values():
        if format.recognizes(path):
            return format
    raise BadFile(f"{path}: neither an RGPT file nor a safetensors file; give a checkpoint")
