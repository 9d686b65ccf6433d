"""What receives the reports of a training session: the terminal, the logs of other programs, and the alert command."""

import threading
import time
from dataclasses import dataclass

from mlx_gpt.train.reports import Report
from mlx_gpt.watch.command import AlertCommand
from mlx_gpt.watch.metrics import line_of
from mlx_gpt.watch.sinks import GuardedSink, require_sinks

CHECK_SECONDS = 5.0  # between two looks at the time since the last report


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """Where reports go besides the terminal and metrics.jsonl.

    Attributes:
        logs: The names of sinks, see SINKS.
        alert: A command that is run for each alert; None for none.

    Raises:
        UserError: There is no such sink, or a package is missing.
    """

    logs: tuple[str, ...] = ()
    alert: str | None = None

    def __post_init__(self):
        require_sinks(self.logs)


class Outputs:
    """Passes the reports of a session to a view and to channels, and notices when no report arrives any more.

    Args:
        session: The session.
        view: Its method `show` gets each report, and its method `note` gets lines of text.
        channels: The channels. They are opened here.
    """

    def __init__(self, session, view, channels: Channels):
        self._session, self._view = session, view
        header = session.start.header
        settings = header.config.to_dict()
        self._receivers = [GuardedSink(n, view.note, session.folder, settings, header.step) for n in channels.logs]
        if channels.alert:
            self._receivers.append(AlertCommand(channels.alert, session.folder, view.note))
        self._last = time.monotonic()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._checking = threading.Thread(target=self._check, daemon=True)
        self._checking.start()

    def show(self, report: Report) -> None:
        """Passes a report on."""
        self._last = time.monotonic()
        self._pass(report)

    def record(self, report: Report) -> None:
        """Writes a report that the session does not yield to metrics.jsonl, and passes it and its alerts on."""
        for each in [report, *self._session.record(report)]:
            self.show(each)

    def close(self) -> None:
        """Closes the channels. Waits for alert commands that still run."""
        self._closed.set()
        self._checking.join()
        for receiver in self._receivers:
            receiver.close()

    def _pass(self, report: Report) -> None:
        with self._lock:
            self._view.show(report)
            for receiver in self._receivers:
                receiver.add(line_of(report))

    def _check(self) -> None:
        while not self._closed.wait(CHECK_SECONDS):
            for alert in self._session.check(time.monotonic() - self._last):
                self._pass(alert)
