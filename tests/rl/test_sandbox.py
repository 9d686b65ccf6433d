"""Laws of the sandbox: outcomes of programs, their files, and the end of the caller."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_gpt.errors import UserError
from mlx_gpt.rl import sandbox
from mlx_gpt.rl.sandbox import Limits, execute, execute_all, isolation

PYTHON = [sandbox.PYTHON, "-s", "-P", "main.py"]
# A program -> the kind of its outcome, its exit code, the class of the failure, and its output, or the end of it.
PROGRAMS = {
    "print('hello')": ("passed", 0, "", "hello\n"),
    "import sys; sys.stderr.write('a'); sys.exit(5)": ("failed", 5, "Other", "a"),
    "def f(:": ("failed", 1, "Syntax", "SyntaxError: invalid syntax\n"),
    "if 1:\nx": ("failed", 1, "Syntax", "expected an indented block after 'if' statement on line 1\n"),
    "assert 1 == 2": ("failed", 1, "Assertion", "AssertionError\n"),
    "assert 0, 'MemoryError'": ("failed", 1, "Assertion", "AssertionError: MemoryError\n"),
    "import nothing_of_this_name": ("failed", 1, "Import", "No module named 'nothing_of_this_name'\n"),
    "1 / 0": ("failed", 1, "Runtime", "ZeroDivisionError: division by zero\n"),
    "class Odd(Exception): pass\nraise Odd()": ("failed", 1, "Runtime", "Odd\n"),
    "raise KeyError('x')": ("failed", 1, "Runtime", "KeyError: 'x'\n"),
    "raise MemoryError": ("memory", 1, "Memory", "MemoryError\n"),
    "import os; os.abort()": ("killed", -6, "Other", ""),
    "import os; os.write(1, b'\\xff')": ("passed", 0, "", "\ufffd"),
    "print(hash('a') == hash('a'), end='')": ("passed", 0, "", "True"),
}


@pytest.fixture(scope="module", autouse=True)
def programs_run():
    if isolation().method == "limits" and os.geteuid() == 0:
        pytest.skip("needs namespaces: this Python may be readable to root only")


def test_outcomes_of_programs():
    found = execute_all([(PYTHON, {"main.py": text}) for text in PROGRAMS], Limits(seconds=60))
    for (text, (kind, code, error, end)), outcome in zip(PROGRAMS.items(), found, strict=True):
        assert (outcome.kind, outcome.exit_code, outcome.error) == (kind, code, error), text
        assert outcome.output.endswith(end), text


def test_an_outcome_is_the_same_every_time():
    """The hashes of texts, and with them the order of sets, do not change."""
    text = "print({str(n) for n in range(50)})"
    assert len({execute(PYTHON, {"main.py": text}, Limits()).output for _ in range(3)}) == 1


def test_files_are_given_and_kept():
    text = """
import os
print(sorted(os.listdir()), os.getcwd() == os.path.realpath(os.environ["HOME"]))
open("new", "wb").write(open("data", "rb").read() * 2)
os.symlink("/etc/passwd", "link")
os.mkdir("folder")
os.mkfifo("fifo")
open("empty", "w")
"""
    data = bytes(range(256))
    keep = ["new", "link", "folder", "fifo", "empty", "absent"]
    outcome = execute(PYTHON, {"main.py": text, "data": data}, Limits(), keep=keep)
    assert outcome.output == "['data', 'main.py'] True\n"
    assert outcome.files == {"new": data * 2, "empty": b""}


@pytest.mark.skipif(isolation().method != "namespaces", reason="needs namespaces")
def test_folders_are_readable_if_given_and_never_writable(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "file"):
        path.chmod(0o777)
    text = f"""
import os
os.chdir({str(tmp_path)!r})
print(open("file").read())
attacks = (open, "file", "w"), (open, "new", "w"), (os.remove, "file"), (os.chmod, "file", 0)
for attack, *arguments in attacks:
    try:
        attack(*arguments)
    except OSError as error:
        print(error.strerror)
"""
    outcome = execute(PYTHON, {"main.py": text}, Limits(), readable=[str(tmp_path)])
    assert outcome.output == "text\n" + "Read-only file system\n" * 4
    outcome = execute(PYTHON, {"main.py": text}, Limits())
    assert outcome.error == "Runtime" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/x", "../x", "a\0"])
def test_names_with_folders_are_refused(name):
    with pytest.raises(UserError, match="name without folders"):
        execute(PYTHON, {name: ""}, Limits())
    with pytest.raises(UserError, match="name without folders"):
        execute(PYTHON, {}, Limits(), keep=[name])


def test_a_program_that_is_absent_is_an_error():
    with pytest.raises(UserError, match="'/no/such/program' cannot be executed: .*No such file"):
        execute(["/no/such/program"], {}, Limits())


@pytest.mark.parametrize(
    "limit", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_mb": -1}, {"file_mb": 1.5}, {"num_processes": True}]
)
def test_limits_are_positive(limit):
    with pytest.raises(UserError, match=f"limit {next(iter(limit))}="):
        Limits(**limit)


def test_isolation_says_what_it_denies_and_what_it_cannot():
    found = isolation()
    assert found.denied and found.possible
    assert found.method in str(found) and all(what in str(found) for what in (*found.denied, *found.possible))
    assert bool(found.reason) == (found.method != "namespaces")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")
def test_programs_end_with_their_caller():
    """A caller that is killed leaves no process behind."""
    token = f"orphan-{os.getpid()}"
    code = f"""
from mlx_gpt.rl.sandbox import Limits, execute
print("ready", flush=True)
execute({PYTHON + [token]}, {{"main.py": "while True: pass"}}, Limits(seconds=300))
"""
    environment = {"PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)

    def running() -> int:
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += f"main.py\0{token}" in path.read_text()
            except OSError:  # it has ended
                pass
        return found

    def waits_until(condition) -> bool:
        return any(condition() or time.sleep(0.05) for _ in range(600))

    assert waits_until(running)
    caller.kill()
    caller.communicate()
    assert waits_until(lambda: not running())
