"""Starts one program with limits, watches it, ends it, and reports how it ended.

sandbox.py runs this file as a script, `python -I -S launcher.py FD`, in a process of its own. It imports nothing but
the standard library. The request is JSON on stdin, see `sandbox.execute`. The report is JSON on stdout. FD is the read
end of a pipe whose write end the caller holds: when the caller ends, however it ends, the program is killed.

With Linux namespaces, the launcher becomes process 1 of a new PID namespace, which has its own root file system: the
readable folders, mounted read-only, and a home folder in memory of limited size. The kernel kills all processes of the
namespace and frees the home folder when process 1 ends. Without namespaces, the program runs in a temporary folder of
the caller, and the launcher finds its processes by their parents.
"""

import base64
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import time

# Constants of linux/sched.h, linux/mount.h, linux/prctl.h, linux/fcntl.h.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
SYS_MOUNT_SETATTR = 442  # the same number on all architectures
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38

INNER_ID = 1000  # user and group of the program in a user namespace
MAX_UID = 1 << 30  # ids of accounts are far below
DEVICES = ("null", "zero", "full", "random", "urandom")
OPEN_FILES = 64  # per process
MAX_NAMES = 10_000  # files and folders in the home folder in memory
POLL = 0.05  # seconds between two looks at the clock and at the memory


def main(lifeline: int) -> None:
    """Reads the request, runs the program, and writes the report."""
    request = json.load(sys.stdin.buffer)
    os.set_inheritable(lifeline, False)
    uid = spare_uid() if os.geteuid() == 0 else None
    if request["namespaces"]:
        uid = enter_namespaces(uid)
        child = os.fork()
        if child:  # the new PID namespace begins with the child
            raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
        build_root(request["readable"], request["home"], request["limits"]["file_mb"], uid)
    elif uid is not None:
        os.chown(request["home"], uid, uid)
    # Process 1 of a PID namespace ignores signals that it has no handler for.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, content in request["files"].items():
        path = os.path.join(request["home"], name)
        with open(path, "xb") as file:
            file.write(base64.b64decode(content))
        os.chmod(path, 0o755)
    report = json.dumps(supervise(request, uid, lifeline))
    sys.stdout.buffer.write(report.encode())
    sys.stdout.buffer.flush()


def spare_uid() -> int:
    """Returns a user id that no account has, another one for each running launcher."""
    last = MAX_UID
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as lines:  # a container may have few ids
        last = min(last, max(int(first) + int(count) for first, _, count in map(str.split, lines)))
    return last - 3 - os.getpid() % (last // 4)


# -- namespaces -------------------------------------------------------------------------------------------------------


def system(name: str, *arguments) -> int:
    """Calls a function of the C library.

    Raises:
        OSError: It failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    encoded = [a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = getattr(libc, name)(*encoded)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def enter_namespaces(uid: int | None) -> int:
    """Leaves the caller's mounts, network, processes and System V IPC. Returns the user id for the program.

    A caller other than root needs a user namespace, in which its own id appears as INNER_ID.
    """
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if uid is not None:
        system("unshare", flags)
        return uid
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    system("unshare", flags | CLONE_NEWUSER)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_ID} {outer_uid} 1"),
        ("gid_map", f"{INNER_ID} {outer_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    return INNER_ID


def build_root(readable: list[str], home: str, size_mb: int, uid: int) -> None:
    """Replaces the root file system by one that holds the readable paths, devices, /proc and an empty home folder."""
    system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    system("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    system("mount", "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.umask(0o022)
    for name in ("old", "new"):
        os.mkdir(f"/tmp/{name}")
    os.chdir("/tmp")
    system("pivot_root", ".", "old")
    os.chdir("/new")
    for path in sorted(readable):
        mount_readable(path)
    os.mkdir("dev")
    for name in DEVICES:
        os.close(os.open(f"dev/{name}", os.O_CREAT, 0o644))
        system("mount", f"/old/dev/{name}", f"dev/{name}", None, MS_BIND, None)
    os.mkdir("proc")
    system("mount", "proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    # No System V shared memory, which no limit counts. Some kernels let only root set this.
    with contextlib.suppress(OSError), open("proc/sys/kernel/shmall", "w") as file:
        file.write("0")
    system("umount2", "/old", MNT_DETACH)
    for link in ("tmp", "dev/shm"):
        with contextlib.suppress(FileExistsError):  # a readable path is in /tmp
            os.symlink(home, link)
    os.mkdir(f"/new{home}")
    options = f"size={size_mb}m,nr_inodes={MAX_NAMES},mode=700,uid={uid},gid={uid}"
    system("mount", "tmpfs", f"/new{home}", "tmpfs", MS_NOSUID | MS_NODEV, options)
    set_read_only("/", 0)
    # The kernel refuses new user namespaces, and with them mounts, to a process whose root is not that of its mounts.
    os.chroot("/new")


def mount_readable(path: str) -> None:
    """Mounts a path of the old root at the same path of the new one, read-only. A symbolic link is copied."""
    old, new = f"/old{path}", f"/new{path}"
    if not os.path.lexists(old) or os.path.lexists(new):
        return
    os.makedirs(os.path.dirname(new), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
        return
    if os.path.isdir(old):
        os.mkdir(new)
    else:
        os.close(os.open(new, os.O_CREAT, 0o644))
    system("mount", old, new, None, MS_BIND | MS_REC, None)
    set_read_only(new, AT_RECURSIVE)


def set_read_only(path: str, flags: int) -> None:
    """Makes a mount read-only, with the flag AT_RECURSIVE also the mounts below it."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    system("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, ctypes.sizeof(attributes))


# -- the program ------------------------------------------------------------------------------------------------------


def start(request: dict, uid: int | None, output: int) -> int:
    """Starts the program. Returns its process id.

    Raises:
        OSError: It cannot be started.
    """
    faults, fault = os.pipe()
    child = os.fork()
    if not child:
        try:
            become(request, uid, output)
        except (OSError, ValueError) as error:
            os.write(fault, str(error).encode())
        raise SystemExit(127)
    os.close(fault)
    with open(faults, "rb") as file:
        message = file.read().decode()  # ends when the pipe is closed, by execve or by the end of the child
    if message:
        os.waitpid(child, 0)
        raise OSError(message)
    return child


def become(request: dict, uid: int | None, output: int) -> None:
    """Replaces this process by the program, with its limits."""
    os.setsid()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    os.chdir(request["home"])
    os.umask(0o022)
    set_limits(request["limits"], uid is not None)
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the kernel kills this program first
        system("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if uid is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if sys.platform == "linux":  # setuid has cleared it
        system("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    command = request["command"]
    os.execve(command[0], command, request["environment"])


def set_limits(limits: dict, own_user: bool) -> None:
    """Sets the resource limits of this process and of those that it starts.

    The limit of processes counts all processes of the user. Without a user of its own, the program gets the given
    number in addition to those that there are.
    """
    megabyte, seconds = 1 << 20, int(limits["seconds"]) + 2
    others = 2 if own_user else num_tasks_of_user()
    values = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits["file_mb"] * megabyte,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: limits["num_processes"] + others,
    }
    if sys.platform == "linux":  # macOS does not enforce it
        values[resource.RLIMIT_AS] = limits["memory_mb"] * megabyte
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def num_tasks_of_user() -> int:
    """Returns the number of processes and, on Linux, threads of this user."""
    if sys.platform != "linux":
        return len(
            subprocess.run(["/bin/ps", "-U", str(os.getuid()), "-o", "pid="], capture_output=True).stdout.split()
        )
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


# -- supervision ------------------------------------------------------------------------------------------------------


def supervise(request: dict, uid: int | None, lifeline: int) -> dict:
    """Runs the program to its end, ends all of its processes, and returns the report.

    Returns:
        A dictionary of "kind" ("ended", "timeout", "memory" or "output"), "status" (exit code, or minus the signal),
        "output" and "files" (base64). Or of "fault", the reason why the program could not be started.
    """
    if sys.platform == "linux":
        system("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the program become children of the launcher
    reader, writer = os.pipe()
    try:
        child = start(request, uid, writer)
    except OSError as error:
        return {"fault": str(error)}
    os.close(writer)
    limits, output = request["limits"], bytearray()
    kind, status = watch(child, reader, output, lifeline, limits)
    end_all()
    if status is None:
        status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os.set_blocking(reader, False)  # without namespaces, a process that has escaped may hold the pipe open
    with contextlib.suppress(BlockingIOError):
        while len(output) <= limits["output_bytes"] and (chunk := os.read(reader, 65536)):
            output += chunk
    if len(output) > limits["output_bytes"] and kind == "ended":
        kind = "output"
    kept = {name: kept_file(request["home"], name, limits) for name in request["keep"]}
    text = base64.b64encode(output[: limits["output_bytes"]]).decode()
    return {"kind": kind, "status": os.waitstatus_to_exitcode(status), "output": text, "files": kept}


def watch(child: int, reader: int, output: bytearray, lifeline: int, limits: dict) -> tuple[str, int | None]:
    """Collects the output until the program ends or exceeds a limit. Returns the kind, and the status if it ended."""
    deadline, is_open = time.monotonic() + limits["seconds"], True
    while True:
        waiting = [lifeline, reader] if is_open else [lifeline]
        ready, _, _ = select.select(waiting, [], [], POLL if is_open else POLL / 5)
        if lifeline in ready:  # the caller has ended
            end_all()
            raise SystemExit(1)
        if reader in ready:
            chunk = os.read(reader, 65536)
            is_open = bool(chunk)
            output += chunk
        if len(output) > limits["output_bytes"]:
            return "output", None
        if (status := reap(child)) is not None:
            return "ended", status
        if time.monotonic() > deadline:
            return "timeout", None
        if memory_used(limits["memory_mb"]) > limits["memory_mb"]:
            return "memory", None


def reap(child: int) -> int | None:
    """Reaps processes that have ended. Returns the status of the child if it is one of them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                found = status
            if not pid:
                break
    return found


def descendants() -> dict[int, float]:
    """Returns the processes that this one started, directly or not, with their resident memory in megabytes."""
    parents, memory = {}, {}
    if sys.platform == "linux":
        page = resource.getpagesize() / (1 << 20)
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # the name before it may contain anything
                parents[int(name)], memory[int(name)] = int(fields[1]), int(fields[21]) * page
    else:
        table = subprocess.run(["/bin/ps", "-axo", "pid=,ppid=,rss="], capture_output=True).stdout
        for line in table.splitlines():
            pid, parent, size = map(int, line.split())
            parents[pid], memory[pid] = parent, size / 1024
    found, waiting = set(), [os.getpid()]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, its in parents.items() if its == parent and pid not in found]
        found.update(children)
        waiting += children
    return {pid: memory[pid] for pid in found}


def memory_used(limit_mb: float) -> float:
    """Returns the megabytes that all processes use together.

    Pages that processes share are counted once, but only if the sum in which they are counted several times exceeds
    the limit, because this takes longer.
    """
    sizes = descendants()
    if sum(sizes.values()) <= limit_mb:
        return 0.0
    for pid in sizes:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as lines:
            sizes[pid] = next((int(line.split()[1]) / 1024 for line in lines if line.startswith(b"Pss:")), 0.0)
    return sum(sizes.values())


def end_all() -> None:
    """Kills all processes of the program."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        return
    # A process that is stopped cannot start others, so the second round finds all of them.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        seen: set[int] = set()
        while new := descendants().keys() - seen:
            for pid in new:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            seen |= new


def kept_file(home: str, name: str, limits: dict) -> str | None:
    """Returns the content of a file that the program wrote, in base64. None if there is no such regular file."""
    path = os.path.join(home, name)
    if not os.path.lexists(path) or not stat.S_ISREG(os.lstat(path).st_mode):  # no process is left that could change it
        return None
    with open(path, "rb") as content:
        return base64.b64encode(content.read(limits["file_mb"] << 20)).decode()


if __name__ == "__main__":
    main(int(sys.argv[1]))
