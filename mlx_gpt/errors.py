"""What can go wrong for a user: one line to read and one exit code for the shell.

Every message names the thing, the value received, what is allowed and the next step to take.
`assert` is kept for our own mistakes.
"""


class UserError(ValueError):
    """Bad usage: a flag, a name, a value, a prompt."""

    exit_code = 2


class BadFile(UserError):
    """A file that is missing its promise: corrupt, truncated, foreign, not text."""

    exit_code = 3


class ResumeRefused(UserError):
    """A checkpoint that does not belong to this run, or a run folder that is in use."""

    exit_code = 4


class Diverged(UserError):
    """The loss or the gradient stopped being finite, several steps in a row."""

    exit_code = 5


class OutOfRoom(UserError):
    """The disk or the memory is full."""

    exit_code = 6


class Disagreement(UserError):
    """Two computations that should be one give different numbers: a fault of ours, not of the user."""

    exit_code = 1


class EngineFailed(UserError):
    """The server's engine failed again and again: a fault of ours or of the device."""

    exit_code = 1
