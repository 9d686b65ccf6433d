"""Runs the command line for tests: mlxgpt() in this process, process() as a new process.

A new process takes longer to start. It is for tests of signals, servers and other things that need one.
"""

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
    """Runs `mlxgpt ARGUMENTS` in this process, with the working folder `cwd` and without a terminal.

    Args:
        arguments: The arguments, converted to strings.
        cwd: The working folder.
        env: Environment variables that are set for the command.

    Returns:
        The exit code, stdout and stderr.

    Raises:
        Exception: Any exception that the command does not handle. A process would end with a traceback.
    """
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
    """Starts `mlxgpt ARGUMENTS` as a new process with pipes for stdout and stderr.

    The process starts with the default handling of SIGINT and SIGHUP. Otherwise it would ignore them if the shell or
    nohup that started the tests ignores them.

    Args:
        arguments: The arguments, converted to strings.
        cwd: The working folder.
        options: Further arguments of Popen. The variables of `env` are added to those of this process. `module` is
            started instead of mlx_gpt.
    """
    command = [sys.executable, "-m", options.pop("module", "mlx_gpt"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **{"preexec_fn": default_signals} | pipes | options)


def default_signals() -> None:
    """Restores the default handling of SIGINT and SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """A context that restores what a command changes in this process.

    These are the signal handlers, the display of warnings, and the number of lanes. In the context, warnings are shown
    or ignored as Python does by default. pytest may turn them into errors.
    """
    descriptor = signal.set_wakeup_fd(-1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # Python's default filters, instead of those of pytest
            for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", quiet)
            yield
    finally:
        lanes(0)
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
