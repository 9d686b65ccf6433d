"""The command line in this process, for tests that are not about a process of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from constants import ROOT

from mlx_gpt.cli.main import main
from mlx_gpt.device.lanes import lanes


def mlxgpt(*arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs `mlxgpt` in `cwd` without a terminal. A fault of ours is raised, where a process ends with a traceback."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = ["mlxgpt", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(mock.patch.object(sys, "argv", command))
        stack.enter_context(mock.patch.dict(os.environ, env))
        stack.enter_context(left_as_it_was())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def process(*arguments, cwd: Path, **options) -> subprocess.Popen:
    """`mlxgpt` as a process of its own, whose output can be read.

    It starts with the system's handling of SIGINT and SIGHUP, which a shell or nohup may have set to be ignored.
    """
    command = [sys.executable, "-m", "mlx_gpt", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **{"preexec_fn": default_signals} | pipes | options)


def default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """Puts back what a command changes for good: signal handlers, how warnings are shown, the number of lanes."""
    descriptor = signal.set_wakeup_fd(-1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as Python sets them, not as errors
            for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", quiet)
            yield
    finally:
        lanes(0)
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
