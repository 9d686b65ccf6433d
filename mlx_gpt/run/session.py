"""A training session in a run folder. It locks the folder and writes settings, vocabulary and metrics to it."""

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
    """Trains a run in its folder. Iterating over the session yields the trainer's reports.

    No update is made before the first report is requested. The folder is locked until the last report, or until
    `close()`. The session writes run.toml, metrics.jsonl, the checkpoints, and, if tokens are byte pairs, a
    tokenizer.json, or a vocab.json where that format cannot represent them. A run that has already reached
    `train.iters` has no reports, and its folder is not changed.

    Attributes:
        start: The initial state.
        folder: The run folder.
        trainer: The trainer.
        note: Called with one line for each thing the user should know. May be replaced.
    """

    def __init__(self, start: Start, folder: Path, note: Note):
        """Builds the trainer, then creates and locks the folder.

        Raises:
            UserError, OutOfRoom: The run cannot be trained. The folder is not created.
            ResumeRefused: Another process trains in the folder.
        """
        self.start, self.folder, self.note = start, folder, note
        self.trainer = make_trainer(start, folder, note)
        make_folder(folder)
        self._lock = FolderLock(folder)
        self._reports = self._train()

    def __next__(self) -> Report:
        return next(self._reports)

    def stop(self) -> None:
        """Ends the run after the current update. Updates under way, the last save and the end are still reported."""
        self.trainer.stop()

    def close(self) -> None:
        """Ends the session and unlocks the folder. Updates since the last save are lost."""
        self._reports.close()
        self._lock.release()

    @property
    def run(self) -> Run:
        """The model, with the weights of the last SampleDue; before any, those of the start."""
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
