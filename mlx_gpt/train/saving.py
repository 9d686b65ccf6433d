"""Writes the checkpoints of a run to its folder, or elsewhere if its folder cannot be written."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.errors import UserError
from mlx_gpt.files import fresh_folder, require_space
from mlx_gpt.paths import BEST as BEST
from mlx_gpt.paths import LATEST as LATEST
from mlx_gpt.train.reports import SaveReport


class CheckpointWriter:
    """Writes the checkpoints of a run. A write that fails is reported, and does not end the run.

    Args:
        folder: The run folder.
        require_folder: Called before each write to the folder. It raises UserError if the folder is no longer that of
            the run.
    """

    def __init__(self, folder: Path, require_folder: Callable[[], None]):
        self._folder, self._require_folder = folder, require_folder

    def require_space(self, num_bytes: int) -> None:
        """Raises OutOfRoom if the disk has no space for the run's two checkpoints of `num_bytes` each.

        A save writes a temporary file before it replaces a checkpoint, so three files need space. The space of
        checkpoints that are already in the folder is subtracted.
        """
        present = [path.stat().st_size for path in (self._folder / LATEST, self._folder / BEST) if path.exists()]
        needed = 3 * num_bytes - sum(min(size, num_bytes) for size in present)
        require_space(self._folder, needed, "the checkpoints and the temporary file of a save", "choose another --out")

    def save(self, name: str, checkpoint: Checkpoint) -> SaveReport:
        """Writes a checkpoint to the file `name` in the run folder."""
        path, error, sizes = self._folder / name, None, {}
        try:
            self._require_folder()
            store.save(path, checkpoint)
            sizes = _sizes(path)
        except UserError as failure:
            error = str(failure)
        return SaveReport(step=checkpoint.header.step, path=str(path), error=error, **sizes)

    def save_last(self, checkpoint: Checkpoint) -> Iterator[SaveReport]:
        """Writes the last checkpoint of a process: to the run folder, or else to a new folder.

        The new folder is made beside the run folder, or else in the system's temporary folder. A run can resume in it.

        Yields:
            A report for each place that was tried. All but the last one have an error.
        """
        report = self.save(LATEST, checkpoint)
        yield report
        whole = self._folder.absolute()
        for parent in (whole.parent, None):
            if report.error is None:
                return
            report = self._save_in_new(parent, f"{whole.name}-rescued-", checkpoint)
            yield report

    def _save_in_new(self, parent: Path | None, prefix: str, checkpoint: Checkpoint) -> SaveReport:
        path, error = parent or Path("temporary folder"), None
        try:
            with fresh_folder(parent, prefix) as folder:
                path = folder / LATEST
                store.save(path, checkpoint)
        except UserError as failure:
            error = str(failure)
        return SaveReport(step=checkpoint.header.step, path=str(path), error=error)


def _sizes(path: Path) -> dict[str, int]:
    """The size of a checkpoint and the free space on its disk; {} if the system does not tell them."""
    try:
        return {"num_bytes": path.stat().st_size, "free_bytes": shutil.disk_usage(path.parent).free}
    except OSError:
        return {}
