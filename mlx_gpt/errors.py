"""Exceptions that the command line prints as one line. It exits with the `exit_code` of their class.

A UserError is an error that a user can act on. Its message names what is wrong (a setting, a file, an argument), the
value received, the values allowed, and what the user can do next. An InternalError is a defect of mlxgpt, which no
input should cause. Other exceptions end a command with a traceback.
"""


class UserError(ValueError):
    """Invalid usage: a flag, a name, a value or a prompt."""

    exit_code = 2


class BadFile(UserError):
    """An invalid file: corrupt, truncated, of an unknown format, or not text."""

    exit_code = 3


class Mismatch(UserError):
    """A checkpoint whose network or vocabulary differs from the arguments."""

    exit_code = 4


class ResumeRefused(UserError):
    """A run that cannot be resumed as requested, or a run folder that another process uses."""

    exit_code = 4


class Diverged(UserError):
    """Training diverged: for several steps in a row, the loss or gradient was not finite, or the loss far too high."""

    exit_code = 5


class OutOfRoom(UserError):
    """Not enough disk space or memory."""

    exit_code = 6


class InternalError(RuntimeError):
    """A failure of mlxgpt itself. The message says what failed; the command line adds what to report."""

    exit_code = 1


class Disagreement(InternalError):
    """Two implementations that should agree compute different results."""


class EngineFailed(InternalError):
    """The server's engine failed repeatedly."""
