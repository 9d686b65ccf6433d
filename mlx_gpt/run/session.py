"""A session of training in a run folder, which it locks and in which it keeps settings, vocabulary and metrics."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlx_gpt.files import FolderLock, make_folder
from mlx_gpt.run.build import Start, make_trainer
from mlx_gpt.run.folder import save_config, save_tokenizer
from mlx_gpt.run.loading import Run
from mlx_gpt.run.request import Note
from mlx_gpt.train.reports import Plan, Report
from mlx_gpt.watch.metrics import MetricsFile


class Session(Iterator[Report]):
    """Trains a run in its folder. Iterate over it for the trainer's reports: nothing is computed before.

    The folder is locked until the last report, or until `close()`. It gets run.toml, metrics.jsonl, the checkpoints,
    and a tokenizer.json if tokens are byte pairs. A run that has already reached `train.iters` has no reports, and its
    folder stays as it is.

    Attributes:
        start: The state the session began with.
        folder: The run folder.
        trainer: The trainer.
        note: Called with one line for each thing the user should know. May be replaced.
    """

    def __init__(self, start: Start, folder: Path, note: Note):
        """Builds the trainer, then makes and locks the folder.

        Raises UserError or OutOfRoom for what cannot be trained, before the folder is made, and ResumeRefused for a
        folder in which another process trains.
        """
        self.start, self.folder, self.note = start, folder, note
        self.trainer = make_trainer(start, folder, note)
        make_folder(folder)
        self._lock = FolderLock(folder)
        self._reports = self._train()

    def __next__(self) -> Report:
        return next(self._reports)

    def stop(self) -> None:
        """Ends the run after the current update. The reports that remain are its last save and its end."""
        self.trainer.stop()

    def close(self) -> None:
        """Unlocks the folder. What was not saved yet is lost."""
        self._reports.close()
        self._lock.release()

    @property
    def run(self) -> Run:
        """The model as it is now. Its weights are up to date when the report is a SampleDue."""
        return Run(model=self.trainer.model, tokenizer=self.start.tokenizer, header=self.trainer.header)

    def _train(self) -> Iterator[Report]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            if self.start.is_complete:
                return
            save_config(self.folder, self.trainer.config)
            save_tokenizer(self.folder, self.start.tokenizer)
            path, first = self.folder / "metrics.jsonl", self.start.header.step
            metrics = MetricsFile(path, first, lambda line: self.note(line))
            stack.callback(metrics.close)
            for report in self.trainer.run():
                metrics.add(report)
                if isinstance(report, Plan):
                    save_config(self.folder, self.trainer.config)
                yield report
