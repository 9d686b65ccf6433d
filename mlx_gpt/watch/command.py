"""Runs a command of the user for each alert of a run."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 30.0  # of one command; then it and the processes that it started are killed
END_SECONDS = 35.0  # that the end of a run waits for commands which still run or wait
BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class AlertCommand:
    """Runs a shell command once for each alert, with the alert as one JSON object on its standard input.

    The object has the fields of `Alert` and `run`, the run folder. The commands run one after the other in a thread of
    their own, so training does not wait for them. They are in a session of their own with the default handling of
    signals: Ctrl-C, which ends the run, does not end them. Their output is discarded.

    Args:
        command: The command.
        folder: The run folder.
        note: Called with one line for each command that fails.
        limit: Seconds after which a command is killed.
    """

    def __init__(self, command: str, folder: Path, note: Callable[[str], None], limit: float = LIMIT_SECONDS):
        self._command, self._folder, self._note, self._limit = command, folder, note, limit
        self._alerts: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, line: Mapping[str, Any]) -> None:
        """Receives a report, an object of metrics.jsonl. Reports that are no alerts are ignored."""
        if line["report"] == "alert":
            self._alerts.put({"run": str(self._folder)} | dict(line))

    def close(self) -> None:
        """Waits for the commands of earlier alerts, at most END_SECONDS."""
        self._alerts.put(None)
        self._thread.join(END_SECONDS)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)  # a process inherits the signals that its thread blocks
        while (alert := self._alerts.get()) is not None:
            if reason := self._run(json.dumps(alert) + "\n"):
                self._note(f"--alert {self._command}: {reason}; the run continues")

    def _run(self, text: str) -> str | None:
        """Runs the command with this input. Returns why it failed, or None."""
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                self._command, shell=True, stdin=pipe, stdout=null, stderr=null, text=True, start_new_session=True
            )
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        try:
            process.communicate(text, timeout=self._limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"was ended after {self._limit:g} s"
        return f"failed with exit code {process.returncode}" if process.returncode else None
