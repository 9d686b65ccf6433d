"""The checkpoint formats: the protocol `Format`, and the table FORMATS of all formats by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import BadFile
from mlx_gpt.formats.huggingface.folder import TARGETS, Folder
from mlx_gpt.formats.llama_gguf import GGUF
from mlx_gpt.formats.nanochat import Nanochat
from mlx_gpt.formats.rgpt import MAGIC, RGPT
from mlx_gpt.formats.safetensors import Safetensors


class Format(Protocol):
    """A checkpoint format. To add a format, write a class in its own file and add an instance to FORMATS.

    Attributes:
        name: The name of the format, as the command line and `convert` take it.
        is_folder: Whether a checkpoint in this format is a folder. Otherwise it is a file.
    """

    name: str
    is_folder: bool

    def recognizes(self, path: Path) -> bool:
        """Whether an existing file or folder has this format. Reads no more of it than is needed to decide."""

    def read(self, path: Path, known: Mapping[str, Any] | None = None) -> Checkpoint:
        """Reads and verifies a checkpoint.

        Args:
            path: A file or folder that recognizes() accepts.
            known: Settings of the table [model] that the caller knows. Formats that do not contain all of them use
                these.

        Returns:
            The checkpoint. Its tokenizer is None if the format contains none.

        Raises:
            BadFile: The file is corrupt. The message says what is wrong with it.
            UserError: A required setting is neither in the file nor in `known`.
        """

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: The format cannot hold the checkpoint. Either refuses() gives a reason, or the checkpoint has no
                tokenizer, no moments or no finished step where the format needs them.
        """

    def refuses(self, config: Config) -> str | None:
        """The reason why the format cannot hold a network of this configuration; None if it can."""


# The formats by name. format_of() takes the first one that recognizes a path.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        *(Folder(target) for target in TARGETS),
        *(RGPT(name) for name in MAGIC),
        GGUF(),
        Nanochat(),
        Safetensors(),
    )
}


def format_of(path: Path) -> Format:
    """The format of an existing file or folder. Raises BadFile if none of FORMATS recognizes it."""
    for format in FORMATS.values():
        if format.recognizes(path):
            return format
    raise BadFile(f"{path}: neither an RGPT file nor a safetensors file nor a GGUF file; give a checkpoint")
