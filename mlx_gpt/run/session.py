"""A training session: one process that trains a run in its folder.

The session locks the folder, and writes the settings, a byte-pair vocabulary and the metrics to it. It passes the
reports to the detectors of watch/health.py.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_gpt.distributed.ranks import join
from mlx_gpt.errors import GroupChanged, RankLost, UserError
from mlx_gpt.files import FolderLock, make_folder, remove_abandoned
from mlx_gpt.run.build import make_trainer
from mlx_gpt.run.folder import folder_of, require_new, save_config, save_tokenizer, set_aside
from mlx_gpt.run.handout import received, send
from mlx_gpt.run.loading import Run
from mlx_gpt.run.request import Note, Request, ignore
from mlx_gpt.run.resume import located
from mlx_gpt.run.start import begin
from mlx_gpt.train.parallel import explained
from mlx_gpt.train.reports import Alert, FailureReport, Plan, Report, SaveReport, StopReport
from mlx_gpt.watch.health import Health
from mlx_gpt.watch.metrics import MetricsFile, line_of
from mlx_gpt.watch.tail import all_reports

CONTINUED = "MLXGPT_CONTINUED"  # environment variable: the run folder with which a restarted process continues


class Session(Iterator[Report]):
    """Trains a run in its folder. Iterating over the session yields the trainer's reports, and alerts after them.

    If an error ends the training, a FailureReport is yielded before the error is raised.

    No update is made before the first report is requested. The folder is locked until the iteration ends, after the
    last report, or until `close()`. The session writes run.toml, metrics.jsonl and the checkpoints. For a byte-pair
    tokenizer it also writes tokenizer.json, if that format can represent the vocabulary, and for merges of characters
    randyGPT's vocab.json. A run that is complete (see Start.is_complete) has no reports. In its folder, at most the
    lock file is created.

    Args:
        request: The request.
        note: Called with one line for each thing the user should know.

    Attributes:
        start: The initial state.
        folder: The run folder.
        trainer: The trainer.
        note: Called with one line for each thing the user should know. The caller may assign another function.
        group: The processes that train this run together. Only rank 0 uses the folder.
    """

    def __init__(self, request: Request, note: Note):
        """Builds the initial state of the run and its trainer.

        The folder of a resumed run is locked before its checkpoints are read, so that no other process changes them. A
        new folder is created and locked last. It is not created if the run is complete.

        Raises:
            UserError: The run cannot be trained, or the folder cannot be created.
            BadFile: A file is corrupt.
            Mismatch: The checkpoint to fine-tune does not match the request.
            OutOfRoom: A training step does not fit into memory.
            ResumeRefused: The checkpoint to resume does not match the request, or another process trains in the folder.
        """
        self.group = join(note)
        self.note = ignore if self.group.rank else note
        continued = os.environ.pop(CONTINUED, None)
        self.folder = Path(continued or "")
        self._is_saved, self._is_stopping, self._joins = bool(continued), False, False
        with contextlib.ExitStack() as stack:
            stack.callback(self.group.leave, False)
            with self._regrouped(), explained(self.group):
                if self.group.rank:
                    self.start, self.folder = received(self.group, self.note)
                    self.trainer = make_trainer(self.start, self.folder, self.note, self.group)
                else:
                    self._prepare(Request(resume=continued) if continued else request, stack)
                self._allow_changes()
            self._locks = stack.pop_all()
        self._metrics: MetricsFile | None = None
        self._health = Health(self.start.header.config.to_dict(), str(self.folder))
        self._recording = threading.Lock()
        self._reports = self._train()

    def _prepare(self, request: Request, stack: contextlib.ExitStack) -> None:
        """Builds the initial state and the trainer, on rank 0, and locks the folder."""
        folder = None
        if request.resume is not None:
            path, folder = located(request)
            request = dataclasses.replace(request, resume=str(path))  # the newest run may change from now on
        if folder:
            self._lock_until_closed(folder, stack)
        self.start = begin(request, self.note, self.group.size)
        for path in self.start.corrupt if folder else ():
            self.note(f"{path}: renamed to {set_aside(path).name}")
        self.folder = folder_of(request, self.start)
        send(self.group, self.start, self.folder)
        self.trainer = make_trainer(self.start, self.folder, self.note, self.group)
        if not folder and not self.start.is_complete:
            make_folder(self.folder)
            self._lock_until_closed(self.folder, stack)
            require_new(self.folder)  # another process may have trained in it since folder_of()
        if self.start.chosen:
            self.note(self.start.chosen)

    def __next__(self) -> Report:
        return next(self._reports)

    def stop(self) -> None:
        """Ends the run after the current update.

        Continue to iterate: the run makes at most one further update, saves a checkpoint if it has made any step, and
        reports the end. An evaluation in progress is abandoned.
        """
        self._is_stopping = True
        self.trainer.stop()

    def record(self, report: Report) -> list[Alert]:
        """Writes a report to metrics.jsonl, with the alerts that follow from it. Returns these alerts.

        The reports of the iteration are recorded already. Others, such as SampleReports, may be recorded while it
        lasts. Safe to call from any thread.
        """
        line = line_of(report)
        with self._recording:
            if self._metrics is None:
                return []
            self._metrics.add(report)
            return self._told(self._health.update(line))

    def check(self, idle: float) -> list[Alert]:
        """Writes the alerts to metrics.jsonl that follow from the lack of reports, and returns them.

        Safe to call from any thread.

        Args:
            idle: Seconds since the last report.
        """
        with self._recording:
            return self._told(self._health.check(idle)) if self._metrics else []

    def close(self) -> None:
        """Ends the session and unlocks the folder. Updates since the last save are lost."""
        self._reports.close()
        self._locks.close()  # the generator releases the lock only if it has been started

    @property
    def run(self) -> Run:
        """The model, its tokenizer and the trainer's header (see Trainer).

        The model holds the weights of the last SampleDue report. Before the first such report it holds the weights that
        this process started from.
        """
        return Run(model=self.trainer.model, tokenizer=self.start.tokenizer, header=self.trainer.header)

    def _lock_until_closed(self, folder: Path, stack: contextlib.ExitStack) -> None:
        """Locks the folder, and removes the temporary files that killed processes have left in it."""
        self._lock = FolderLock(folder)
        stack.callback(self._lock.release)
        remove_abandoned(folder)

    def _update_config(self) -> None:
        """Writes the settings to run.toml again. If that fails, tells the user."""
        try:
            self._lock.require_held()
            save_config(self.folder, self.trainer.config)
        except UserError as error:
            self.note(f"run.toml keeps the settings from before the plan: {error}")

    def _told(self, alerts: list[Alert]) -> list[Alert]:
        for alert in alerts:
            self._metrics.add(alert)
        return alerts

    def _open_metrics(self) -> None:
        """Opens metrics.jsonl. The detectors read what an earlier process has written, and report no alert again."""
        path, first = self.folder / "metrics.jsonl", self.start.header.step
        metrics = MetricsFile(path, first, lambda line: self.note(line))  # `note` may be replaced later
        for line in all_reports(path):
            self._health.update(line)
        self._metrics = metrics

    def _close_metrics(self) -> None:
        with self._recording:
            metrics, self._metrics = self._metrics, None
        metrics.close()

    def _train(self) -> Iterator[Report]:
        with self._locks as stack:
            if not self.start.is_complete:
                yield from self._recorded(stack) if self.group.rank == 0 else self._trained()
                if self._joins and (change := self._change()):
                    raise change
            self.group.leave(True)

    def _allow_changes(self) -> None:
        """With `train.min_ranks`, lets ranks be lost and processes join."""
        train = self.trainer.config.train
        if train.min_ranks and (address := self.group.allow_changes(train.min_ranks, train.sequences_per_step)):
            self.note(f"ranks: {self.group.size}; further processes join with: mlxgpt train --join {address}")

    def _trained(self, *require_folder: Callable[[], None]) -> Iterator[Report]:
        """Trains. Raises GroupChanged if a rank is lost and the others go on without it."""
        with self._regrouped():
            for report in self.trainer.run(*require_folder):
                if isinstance(report, SaveReport):
                    self._is_saved = not report.error and Path(report.path).parent == self.folder
                self._joins = isinstance(report, StopReport) and report.reason == "ranks"
                yield report

    @contextlib.contextmanager
    def _regrouped(self) -> Iterator[None]:
        """A context that converts RankLost to GroupChanged if the remaining ranks go on."""
        try:
            yield
        except RankLost as error:
            raise self._change() or error from error

    def _change(self) -> GroupChanged | None:
        """Returns what lets this process go on in a changed group; None if the run ends, or nothing could be saved."""
        if self._is_stopping or not (self._is_saved or self.group.rank):
            return None
        if (change := self.group.regroup(lambda: not self._is_stopping)) and not self.group.rank:
            change.environment[CONTINUED] = str(self.folder)
        return change

    def _recorded(self, stack: contextlib.ExitStack) -> Iterator[Report]:
        """Trains, and records the reports in the run folder. The last line of metrics.jsonl says if the run failed."""
        save_config(self.folder, self.trainer.config)
        save_tokenizer(self.folder, self.start.tokenizer)
        self._open_metrics()
        stack.callback(self._close_metrics)
        try:
            for report in self._trained(self._lock.require_held):
                alerts = self.record(report)
                if isinstance(report, Plan):  # the plan has changed `train.iters`
                    self._update_config()
                yield report
                yield from alerts
        except Exception as error:
            failure = FailureReport(step=self.trainer.header.step, error=type(error).__name__, message=str(error))
            alerts = self.record(failure)
            yield failure
            yield from alerts
            raise
