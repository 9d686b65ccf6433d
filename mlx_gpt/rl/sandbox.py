"""Executes programs that may do anything, with limits on what they can do and use.

launcher.py starts and ends each program, in a process of its own. What a program can reach depends on the system:

* Linux with namespaces: no network, no other process, no file but those that the program needs, all read-only, and a
  home folder in memory.
* macOS with sandbox-exec: no network, no writing outside the temporary folder.
* elsewhere: limits of time, memory, processes and output only.

`isolation()` says which of them this machine has. No output of a program is executed or unpickled.
"""

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from mlx_gpt.errors import InternalError, UserError

LAUNCHER = Path(__file__).with_name("launcher.py")
PYTHON = os.path.realpath(sys.executable)  # without the packages of a virtual environment
HOME = "/sandbox"  # the program's folder, with namespaces. Readable folders may be in /home.
GRACE = 30.0  # seconds that the launcher may need in addition to the program
# What programs and compilers need on Linux: libraries, headers, linkers. Paths that do not exist are left out.
SYSTEM_PATHS = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/alternatives", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d",
)  # fmt: skip
SANDBOX_EXEC = "/usr/bin/sandbox-exec"  # of macOS
# Later rules precede earlier ones. Written from Apple's documentation of sandbox profiles; never run on macOS.
PROFILE = """(version 1)
(allow default)
(deny network*)
(deny file-write*)
(allow file-write* (subpath {folder}) (literal "/dev/null") (literal "/dev/zero"))
(deny signal)
(allow signal (target same-sandbox))
"""
# Pattern of a line of the output -> the class of the failure. The last line that matches counts.
ERRORS = (
    (r"(SyntaxError|IndentationError|TabError)\b", "Syntax"),
    (r"AssertionError\b|assertion .*failed", "Assertion"),
    (r"(ImportError|ModuleNotFoundError)\b", "Import"),
    (r"MemoryError\b|.*\bmemory allocation of \d+ bytes failed", "Memory"),
    (r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|StopIteration|Warning|Group)\b", "Runtime"),
    (r"Traceback \(most recent call last\)|thread '.*' .*panicked at", "Runtime"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: Time until it is killed, in seconds.
        memory_mb: Memory of each process, and of all of them together, in MiB.
        file_mb: Size of a file that it writes, and with namespaces of all its files together, in MiB.
        num_processes: Number of processes and threads at a time.
        output_bytes: Size of its output, stdout and stderr together.

    Raises:
        UserError: A limit is not positive.
    """

    seconds: float = 10.0
    memory_mb: int = 512
    file_mb: int = 16
    num_processes: int = 32
    output_bytes: int = 1 << 16

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            types, kind = ((int, float), "a number") if f.type is float else ((int,), "a whole number")
            if type(value) not in types or not 0 < value < 1 << 40:
                raise UserError(f"limit {f.name}={value!r} is not allowed; give {kind} above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        kind: "passed" (exit code 0), "failed" (another exit code), "killed" (by a signal), or the limit that it
            exceeded: "timeout", "memory", "output".
        exit_code: Its exit code, or minus the number of the signal that ended it.
        output: The beginning of its stdout and stderr. Invalid UTF-8 is replaced.
        error: The class of the failure: "Syntax", "Assertion", "Import", "Runtime", "Timeout", "Memory" or "Other".
            "" if it passed.
        files: The files that `keep` named, by name, as far as the program wrote them.
    """

    kind: str
    exit_code: int
    output: str = ""
    error: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the kind is "passed"."""
        return self.kind == "passed"


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the sandbox of this machine does.

    Attributes:
        method: "namespaces", "sandbox-exec" or "limits".
        denied: What it denies to a program, one phrase each.
        possible: What a program can do nevertheless.
        reason: Why the method is not "namespaces"; "" if it is.
    """

    method: str
    denied: tuple[str, ...]
    possible: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        lines = [f"sandbox: {self.method}" + (f" ({self.reason})" if self.reason else "")]
        lines += [f"denied: {what}" for what in self.denied] + [f"possible: {what}" for what in self.possible]
        return "\n".join(lines)


LIMITED = ("running longer, and more memory, processes and output, than the limits", "reading the caller's environment")
ISOLATIONS = {
    "namespaces": (
        (*LIMITED, "files in total above the limit", "all network, localhost included", "writing outside its folder",
         "reading files of users", "seeing or signaling other processes", "leaving processes or files behind"),
        ("reading the system's programs and libraries", "using the processor until the time limit",
         "memory in files without a name (memfd), each below the limit of a file"),
    ),
    "sandbox-exec": (
        (*LIMITED, "all network", "writing outside its folder", "signaling other processes"),
        ("reading files of this user", "many files that are each below the limit",
         "leaving a process behind that detaches itself"),
    ),
    "limits": (
        LIMITED,
        ("network", "reading and writing what its user can", "signaling processes of its user, the launcher included",
         "many files that are each below the limit"),
    ),
}  # fmt: skip


@functools.cache
def isolation() -> Isolation:
    """What the sandbox denies on this machine and what it cannot deny. Executes a program to find out, once."""
    method, reason = "limits", f"{sys.platform} has no sandbox that is known here"
    if sys.platform == "linux":
        try:
            report = _launch([PYTHON, "-c", ""], {}, Limits(), True, (), ())
            reason = report.get("fault") or ("" if report["status"] == 0 else report["output"].strip()[-200:])
        except InternalError as error:
            reason = str(error)
        method, reason = ("limits", f"no namespaces: {reason}") if reason else ("namespaces", "")
    elif sys.platform == "darwin" and os.path.exists(SANDBOX_EXEC):
        method, reason = "sandbox-exec", "macOS; never tested there"
    denied, possible = ISOLATIONS[method]
    if method == "limits" and os.geteuid() == 0:
        denied = (*denied, "the rights of root")
    return Isolation(method, denied, possible, reason)


def execute(
    command: list[str],
    files: dict[str, str | bytes],
    limits: Limits,
    *,
    readable: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> Outcome:
    """Executes a program in the sandbox, in an own folder that is its current folder and HOME.

    Its stdin is empty. Its environment has a PATH, a HOME and little else. Afterwards no process and no file is left.

    Args:
        command: An absolute path of a program and its arguments, or "./NAME" for one of the files.
        files: The content of the files in its folder, by name. They are executable.
        limits: What it may use.
        readable: Absolute paths of folders that it may read in addition to those of the system and of Python.
        keep: Names of files that it writes and that the outcome holds.

    Raises:
        UserError: There is no such program, or a name of a file contains a slash.
        InternalError: The sandbox failed.
    """
    for name in [*files, *keep]:
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise UserError(f"{name!r} is not allowed as the name of a file of a program; give a name without folders")
    namespaces = isolation().method == "namespaces"
    report = _launch(command, files, limits, namespaces, tuple(readable), tuple(keep))
    if "fault" in report:
        raise UserError(f"{command[0]!r} cannot be executed: {report['fault']}; give the path of a program")
    output, code = report["output"], report["status"]
    kind = report["kind"] if report["kind"] != "ended" else _ended(code, output)
    kept = {name: base64.b64decode(content) for name, content in report["files"].items() if content is not None}
    return Outcome(kind=kind, exit_code=code, output=output, error=_error(kind, output), files=kept)


def execute_all(programs: list[tuple[list[str], dict[str, str | bytes]]], limits: Limits, **options) -> list[Outcome]:
    """Executes several programs side by side, as many as there are cores. Returns their outcomes in the same order.

    Args:
        programs: The command and the files of each program.
        limits: What each program may use.
        options: `readable` and `keep` of execute().

    Raises:
        UserError, InternalError: Of execute().
    """
    return side_by_side(lambda program: execute(*program, limits, **options), programs)


def side_by_side(function: Callable, items: Iterable) -> list:
    """Applies a function that waits for the sandbox to each item, on all cores. Returns the results in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(function, items))


def _ended(code: int, output: str) -> str:
    """Returns the kind of a program that ended by itself or by a limit of the kernel."""
    if code == 0:
        return "passed"
    if code == -24:  # SIGXCPU
        return "timeout"
    if _last_error(output) == "Memory":
        return "memory"
    return "killed" if code < 0 else "failed"


def _error(kind: str, output: str) -> str:
    """Returns the class of the failure, see Outcome."""
    fixed = {"passed": "", "timeout": "Timeout", "memory": "Memory", "output": "Other", "killed": "Other"}
    return fixed[kind] if kind in fixed else _last_error(output)


def _last_error(output: str) -> str:
    """Returns the class of the last line of the output that names an error."""
    for line in reversed(output.splitlines()[-200:]):
        for pattern, kind in ERRORS:
            if re.match(pattern, line[:1000]):
                return kind
    return "Other"


def _launch(command, files, limits: Limits, namespaces: bool, readable, keep) -> dict:
    """Runs the launcher on a program. Returns its report, with the output as text."""
    with contextlib.ExitStack() as stack:
        home = HOME if namespaces else stack.enter_context(_temporary_folder())
        if not namespaces and sys.platform == "darwin" and os.path.exists(SANDBOX_EXEC):
            command = [SANDBOX_EXEC, "-p", PROFILE.format(folder=json.dumps(home)), *command]
        contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        request = {
            "command": command,
            "files": {name: base64.b64encode(content).decode() for name, content in contents.items()},
            "limits": asdict(limits),
            "namespaces": namespaces,
            "home": home,
            "readable": [*SYSTEM_PATHS, sys.base_prefix, *readable],
            "keep": list(keep),
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8",
                            "PYTHONHASHSEED": "0"},
        }  # fmt: skip
        report = _supervised(json.dumps(request).encode(), limits.seconds + GRACE)
    if "output" in report:
        report["output"] = base64.b64decode(report["output"]).decode(errors="replace")
    return report


def _supervised(request: bytes, seconds: float) -> dict:
    """Runs the launcher. It kills the program when the write end of the pipe `alive` is closed."""
    lifeline, alive = os.pipe()
    try:
        process = subprocess.Popen(
            [PYTHON, "-I", "-S", str(LAUNCHER), str(lifeline)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(lifeline,),
            env={},
            cwd="/",
        )
        os.close(lifeline)
        try:
            report, complaints = process.communicate(request, timeout=seconds)
        except BaseException as error:  # KeyboardInterrupt included
            process.kill()
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise InternalError(f"the sandbox failed: it did not end within {seconds:.0f} s") from error
            raise
    finally:
        os.close(alive)
    if process.returncode < 0:  # without namespaces, the program can kill it
        return {"kind": "ended", "status": process.returncode, "output": "", "files": {}}
    if process.returncode:
        lines = complaints.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise InternalError(f"the sandbox failed: {lines[-1]}")
    return json.loads(report)


@contextlib.contextmanager
def _temporary_folder():
    """A folder that is removed at the end, whatever a program has made in it."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix=f"mlxgpt-{os.getpid()}-"))
    try:
        yield folder
    finally:
        # rm works in folders nested deeper than Python can recurse. Neither command follows symbolic links.
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            subprocess.run(command, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
