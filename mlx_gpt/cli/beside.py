"""Starts the dashboard in a process beside a training process, for `mlxgpt train --watch`."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def dashboard_beside(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """A context in which a dashboard of a run folder is served. Its failure has no effect on this process.

    The dashboard ends when its standard input ends. The system closes that when this process ends, however it ends. The
    dashboard has a session of its own, so that Ctrl-C, which goes to all processes of the terminal, ends it only
    together with the run.

    Args:
        folder: The run folder.
        note: Called with one line that has the address, or that tells that the dashboard did not start. Another thread
            calls it.
    """
    again = f"mlxgpt watch {folder}"
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_gpt", "watch", str(folder), "--port", "0", "--until-input-ends"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        note(f"the dashboard did not start: {error.strerror}; training goes on; try: {again}")
        yield
        return

    def tell() -> None:
        line = process.stdout.readline().decode(errors="replace").strip()
        if line:
            note(f"dashboard: {line.partition('  (')[0]}; it ends with this run, then open it with: {again}")
        else:
            note(f"the dashboard did not start; training goes on; see why with: {again}")

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may have ended by itself
            process.stdin.close()
