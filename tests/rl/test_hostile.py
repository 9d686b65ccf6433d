"""Programs that attack the sandbox: each harms nothing, and its end is classified.

Every program runs in each way of isolation that this machine allows. A program that must not be able to do something
tries it, and exits with code 0 only if it failed.
"""

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_gpt.rl import sandbox
from mlx_gpt.rl.sandbox import Limits, execute, isolation, side_by_side

TOKEN = f"hostile-{os.getpid()}"  # an argument of each program, by which its processes are found
SECRET = "a-secret-of-the-caller"
LONG, SHORT = Limits(seconds=60, memory_mb=256), Limits(seconds=1.0, memory_mb=256)


@dataclass(frozen=True)
class Attack:
    """A program, the kinds of outcome that are right, and the class of the failure.

    Attributes:
        strong: Whether only namespaces deny what it tries.
        limits: What it may use.
    """

    text: str
    kinds: str
    error: str = ""
    strong: bool = False
    limits: Limits = LONG


def denied(statements: str) -> str:
    """A program that exits with code 0 if the system refuses the statements."""
    indented = "\n".join(f"    {line}" for line in statements.splitlines())
    return f"import os, sys, socket\ntry:\n{indented}\nexcept (OSError, ValueError):\n    sys.exit(0)\nsys.exit(7)\n"


FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
COUNT_FORKS = """
import os, time
for n in range(100):
    try:
        if not os.fork():
            time.sleep(50)
            os._exit(0)
    except OSError:
        break
print(n, "children")
"""
MANY_MEMORY_HOGS = """
import os, time
for _ in range(8):
    if not os.fork():
        hog = b"x" * (150 << 20)
        time.sleep(50)
time.sleep(50)
"""
DAEMON = """
import os, signal, time
if not os.fork():
    os.setsid()
    if not os.fork():
        for number in range(1, 32):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        time.sleep(100)
    os._exit(0)
os.wait()
"""
MANY_FILES = """
for n in range(100):
    with open(f"file{n}", "wb") as file:
        file.write(b"x" * (1 << 20))
"""
DEEP_FOLDERS = """
import os
for _ in range(2000):
    os.mkdir("deep")
    os.chdir("deep")
os.chmod(".", 0)
os.chmod(os.environ["HOME"], 0)
"""
OPEN_FILES = """
files = []
try:
    while True:
        files.append(open(__file__))
except OSError:
    print(len(files) < 100)
"""
WRITE_OUTSIDE = """
for path in (r"{victim}", "/etc/x", "/usr/x", "/root/x", "/x", "/dev/x", "/var/tmp/x", "/proc/sys/kernel/hostname"):
    try:
        open(path, "w").write("harm")
    except OSError:
        continue
    raise SystemExit(7)
"""
KILL_OTHERS = """
import os, signal
for pid in (os.getppid(), 1, {pid}):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except OSError:
            pass
"""
ENVIRONMENT = """
import glob, os
print(os.environ)
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        print(open(path).read())
    except OSError:
        pass
"""
IGNORED_SIGNALS = """
import signal
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
while True:
    pass
"""
THREADS = """
import threading
def busy():
    while True:
        pass
for _ in range(8):
    threading.Thread(target=busy).start()
"""
NEW_NAMESPACE = """
import ctypes, sys
sys.exit(ctypes.CDLL(None).unshare(0x10000000) == 0)
"""
LIMITS_BACK = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)"
ATTACKS = {
    "infinite loop": Attack("while True: pass", "timeout", "Timeout", limits=SHORT),
    "sleep": Attack("import time; time.sleep(1000)", "timeout", "Timeout", limits=SHORT),
    "busy threads": Attack(THREADS, "timeout", "Timeout", limits=SHORT),
    "ignored signals": Attack(IGNORED_SIGNALS, "timeout", "Timeout", limits=SHORT),
    "stops itself": Attack("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout", limits=SHORT),
    "fork bomb": Attack(FORK_BOMB, "timeout", "Timeout", limits=SHORT),
    "counts its forks": Attack(COUNT_FORKS, "passed"),
    "zombies": Attack("import os\nfor _ in range(20):\n    os.fork() or os._exit(0)", "passed"),
    "daemon": Attack(DAEMON, "passed"),
    "memory bomb": Attack("x = []\nwhile True:\n    x.append(b'x' * (1 << 20))", "memory", "Memory"),
    "memory of many processes": Attack(MANY_MEMORY_HOGS, "memory", "Memory"),
    "huge allocation": Attack("bytearray(1 << 40)", "memory", "Memory"),
    "large file": Attack("open('x', 'wb').write(b'x' * (100 << 20))", "failed", "Runtime"),
    "sparse file": Attack("open('x', 'wb').truncate(1 << 40)", "failed", "Runtime"),
    "many files": Attack(MANY_FILES, "failed", "Runtime", strong=True),
    "deep folders": Attack(DEEP_FOLDERS, "passed"),
    "open files": Attack(OPEN_FILES, "passed"),
    "endless output": Attack("while True: print('x' * 10000)", "output", "Other"),
    "endless errors": Attack("import os\nwhile True: os.write(2, b'x' * 10000)", "output", "Other"),
    "closes stdout": Attack("import os, sys\nos.close(1)\nos.close(2)\nos._exit(3)", "failed", "Other"),
    "reads stdin": Attack("input()", "failed", "Runtime"),
    "huge exit code": Attack("import sys; sys.exit(10**30)", "failed", "Other"),
    "kills itself": Attack("import os; os.kill(os.getpid(), 9)", "killed", "Other"),
    "kills others": Attack(KILL_OTHERS, "passed"),
    "kills all": Attack("import os; os.kill(-1, 9)", "passed failed"),
    "recursion": Attack("def f(): return f()\nf()", "failed", "Runtime"),
    "stack overflow": Attack("import sys; sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()", "killed memory failed"),
    "reads the environment": Attack(ENVIRONMENT, "passed"),
    "reads the launcher's memory": Attack(denied("open(f'/proc/{os.getppid()}/mem', 'rb')"), "passed"),
    "raises its limits": Attack(denied(LIMITS_BACK), "passed"),
    "becomes root": Attack(denied("os.setuid(0)\nos.chroot('/')"), "passed"),
    "new namespace": Attack(NEW_NAMESPACE, "passed", strong=True),
    "writes outside": Attack(WRITE_OUTSIDE, "passed", strong=True),
    "link to outside": Attack(denied("os.symlink(r'{victim}', 'link')\nopen('link', 'w')"), "passed", strong=True),
    "reads outside": Attack(denied("open(r'{victim}')"), "passed", strong=True),
    "deletes its home": Attack("import os, shutil; shutil.rmtree(os.environ['HOME'], ignore_errors=True)", "passed"),
    "internet": Attack(denied("socket.create_connection(('192.0.2.1', 80), 1)"), "passed", strong=True),
    "localhost": Attack(denied("socket.create_connection(('127.0.0.1', {port}), 5)"), "passed", strong=True),
    "listens": Attack(denied("s = socket.create_server(('0.0.0.0', 0))\nsocket.create_connection(s.getsockname(), 1)"),
                      "passed", strong=True),
    "socket without a file": Attack(denied("socket.socket(socket.AF_UNIX).connect('\\0{token}')"),
                                    "passed", strong=True),
}  # fmt: skip


def plain_python() -> str | None:
    """A Python that every user may execute: without namespaces, programs of root run as another user."""
    candidates = [sandbox.PYTHON, "/usr/bin/python3"]
    drop = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    for path in candidates:
        try:
            subprocess.run([path, "-c", ""], env={}, cwd="/", check=True, stderr=subprocess.DEVNULL, **drop)
            return path
        except (OSError, subprocess.CalledProcessError):
            continue
    return None


@pytest.fixture(scope="module", params=["namespaces", pytest.param("limits", marks=pytest.mark.slow)])
def outcomes(request, tmp_path_factory):
    """The outcomes of all attacks by name, the victim that they know, and the way of isolation."""
    if request.param == "namespaces" and isolation().method != "namespaces":
        pytest.skip(f"needs namespaces: {isolation().reason}")
    python = sandbox.PYTHON if request.param == "namespaces" else plain_python()
    if not python:
        pytest.skip("needs a Python that every user may execute")
    victim = tmp_path_factory.mktemp("outside") / "victim"
    victim.write_text("unharmed")
    for path in (victim, *victim.parents[:3]):  # so that permissions alone do not protect it
        path.chmod(0o777)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    attacks = {name: a for name, a in ATTACKS.items() if request.param == "namespaces" or not a.strong}
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        patch.setenv("SECRET", SECRET)
        patch.setattr(sandbox, "isolation", lambda: sandbox.Isolation(request.param, (), ()))
        names = {"victim": victim, "port": server.getsockname()[1], "token": TOKEN, "pid": bystander.pid}
        with socket.socket(socket.AF_UNIX) as nameless:
            if sys.platform == "linux":
                nameless.bind(f"\0{TOKEN}")
                nameless.listen()

            def attack(name):
                text = attacks[name].text
                for key, value in names.items():
                    text = text.replace(f"{{{key}}}", str(value))
                return execute([python, "-s", "-P", "main.py", TOKEN], {"main.py": text}, attacks[name].limits)

            found = dict(zip(attacks, side_by_side(attack, attacks), strict=True))
    alive = bystander.poll() is None
    bystander.kill()
    bystander.wait()
    return found, victim, alive


@pytest.mark.parametrize("name", ATTACKS)
def test_the_end_of_each_attack_is_classified(outcomes, name):
    if name not in outcomes[0]:
        pytest.skip("only namespaces deny this")
    outcome, attack = outcomes[0][name], ATTACKS[name]
    assert outcome.kind in attack.kinds.split(), outcome
    assert not attack.error or outcome.error == attack.error, outcome
    assert outcome.passed == (outcome.exit_code == 0) == (outcome.error == ""), outcome
    assert len(outcome.output.encode()) <= attack.limits.output_bytes


def test_attacks_leave_no_process_and_harm_no_other(outcomes):
    _, victim, alive = outcomes
    assert alive, "a process of the caller was killed"
    if not os.path.isdir("/proc"):
        pytest.skip("needs /proc")
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            left += [path] * (TOKEN.encode() in path.read_bytes())
        except OSError:  # it has ended
            pass
    assert not left


def test_attacks_leave_no_file_and_change_none(outcomes):
    _, victim, _ = outcomes
    assert victim.read_text() == "unharmed" and os.listdir(victim.parent) == ["victim"]
    assert not list(Path(tempfile.gettempdir()).glob(f"mlxgpt-{os.getpid()}-*"))
    assert not any(Path(folder, "x").exists() for folder in ("/", "/etc", "/usr", "/root", "/dev", "/var/tmp"))


def test_attacks_see_nothing_of_the_caller(outcomes):
    assert SECRET not in "".join(outcome.output for outcome in outcomes[0].values())


def test_a_program_gets_as_many_processes_as_its_limit(outcomes):
    count = int(outcomes[0]["counts its forks"].output.split()[0])
    assert LONG.num_processes - 5 <= count <= LONG.num_processes + 2
    assert outcomes[0]["open files"].output == "True\n"
