"""A training session: one process that trains a run in its folder.

The session locks the folder, and writes the settings, a byte-pair vocabulary and the metrics to it.
"""

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

    No update is made before the first report is requested. The folder is locked until the iteration ends, after the
    last report, or until `close()`. The session writes run.toml, metrics.jsonl and the checkpoints. For a byte-pair
    tokenizer it also writes tokenizer.json, if that format can represent the vocabulary, and for merges of characters
    randyGPT's vocab.json. A run that is complete (see Start.is_complete) has no reports. In its folder, at most the
    lock file is created.

    Attributes:
        start: The initial state.
        folder: The run folder.
        trainer: The trainer.
        note: Called with one line for each thing the user should know. The caller may assign another function.
    """

    def __init__(self, start: Start, folder: Path, note: Note):
        """Builds the trainer, then creates and locks the folder.

        Raises:
            UserError: The run cannot be trained, or the folder cannot be created.
            OutOfRoom: A training step does not fit into memory.
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
        """Ends the run after the current update.

        Continue to iterate: the run makes at most one further update, saves a checkpoint if it has made any step, and
        reports the end. An evaluation in progress is abandoned.
        """
        self.trainer.stop()

    def close(self) -> None:
        """Ends the session and unlocks the folder. Updates since the last save are lost."""
        self._reports.close()
        self._lock.release()  # the generator releases the lock only if it has been started

    @property
    def run(self) -> Run:
        """The model, its tokenizer and the trainer's header (see Trainer).

        The model holds the weights of the last SampleDue report. Before the first such report it holds the weights that
        this process started from.
        """
        return Run(model=self.trainer.model, tokenizer=self.start.tokenizer, header=self.trainer.header)

    def _train(self) -> Iterator[Report]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            if self.start.is_complete:
                return
            save_config(self.folder, self.trainer.config)
            save_tokenizer(self.folder, self.start.tokenizer)
            path, first = self.folder / "metrics.jsonl", self.start.header.step
            metrics = MetricsFile(path, first, lambda line: self.note(line))  # `note` may be replaced later
            stack.callback(metrics.close)
            for report in self.trainer.run():
                metrics.add(report)
                if isinstance(report, Plan):  # the plan has changed `train.iters`
                    save_config(self.folder, self.trainer.config)
                yield report
