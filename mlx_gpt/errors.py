"""Exceptions that the command line prints as one line. It exits with the `exit_code` of their class.

A UserError is an error that a user can act on. Its message names what is wrong (a setting, a file, an argument), the
value received, the values allowed, and what the user can do next. An InternalError is a defect of mlxgpt, which no
input should cause. Other exceptions end a command with a traceback.
"""

MAX_MESSAGE, MAX_BEGIN, MAX_END = 1500, 900, 500  # characters of a message, and of what is left of a longer one


class UserError(ValueError):
    """Invalid usage: a flag, a name, a value or a prompt.

    Args:
        message: The message. It becomes one line: characters that are not printable, such as newlines and the escape
            sequences of a terminal, are escaped as in Python, and the middle of a long message is left out.
    """

    exit_code = 2

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_BEGIN]} ... {line[-MAX_END:]}")


class BadFile(UserError):
    """An invalid file: corrupt, truncated, of an unknown format, or not text."""

    exit_code = 3


class Unreadable(BadFile):
    """A file that the system failed to read. Its content may be valid."""


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


class DeviceTimeout(UserError):
    """The system ended work on the GPU because it took too long."""

    exit_code = 7


class GroupFailed(UserError):
    """Another process of a group that trains together has ended, does not answer or cannot be reached."""

    exit_code = 8


class RankLost(GroupFailed):
    """Another process of a group was lost. The others hold all that is needed to continue."""


class GroupChanged(GroupFailed):
    """The processes of a group have changed. This one must execute its command again.

    Args:
        message: What has changed.
        environment: The environment variables to set for the command.
    """

    def __init__(self, message: str, environment: dict[str, str]):
        super().__init__(message)
        self.environment = environment


class InternalError(RuntimeError):
    """A failure of mlxgpt itself. The message says what failed; the command line adds what to report."""

    exit_code = 1


class Disagreement(InternalError):
    """Two implementations that should agree compute different results."""


class EngineFailed(InternalError):
    """The server's engine failed repeatedly."""


# Rows of: what the message of an exception contains, the error that explains it, and the message of that error.
_DEVICE_ERRORS = (
    (
        ("gpu timeout", "impacting interactivity", "callbackerrortimeout"),
        DeviceTimeout,
        (
            "the system stopped the GPU because a command buffer ran too long while a display is attached; lower "
            "--batch and raise --accum by the same factor, set speed.ops_per_buffer=10, or run without a display"
        ),
    ),
    (
        ("malloc", "allocate", "resource limit", "insufficient memory", "out of memory"),
        OutOfRoom,
        "out of memory; in training, lower --batch and raise --accum by the same factor; in serving, lower --streams",
    ),
)


def from_device(error: RuntimeError | MemoryError) -> UserError | None:
    """Returns the error that explains an exception of MLX, or None if it is not about the device.

    The error is OutOfRoom, or DeviceTimeout for the watchdog of macOS, which ends long work on the GPU so that the
    display can be updated.
    """
    text = "out of memory" if isinstance(error, MemoryError) else str(error).lower()
    return next((kind(message) for words, kind, message in _DEVICE_ERRORS if any(word in text for word in words)), None)
