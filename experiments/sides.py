"""Runs two versions of mlxgpt on one machine, for scripts that compare them.

Each version, a "side", runs its own code. Both use the Python interpreter that runs this file.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HAS_SHAKESPEARE = Path(os.environ.get("MLXGPT_CORPUS_DIR", ""), "shakespeare.txt").is_file()
CORPUS = "shakespeare" if HAS_SHAKESPEARE else "pydocs"


class Failed(Exception):
    """A command of a side failed, or its output lacks a value that is compared."""


@dataclass(frozen=True)
class Side:
    """One of the two versions that are compared.

    Attributes:
        name: "old" or "new".
        code: The folder that contains this version's mlx_gpt.
        home: The working folder of this version's processes.
    """

    name: str
    code: Path
    home: Path

    def run(self, *arguments: str) -> str:
        """Runs `mlxgpt ARGUMENTS` and returns its stdout.

        Raises:
            Failed: The exit code is not 0. The message ends with the last line of stderr.
        """
        return self.python("-m", "mlx_gpt", *arguments)

    def python(self, *arguments: str) -> str:
        """Runs `python ARGUMENTS` and returns its stdout. Raises Failed as run() does."""
        with tempfile.TemporaryFile("w+") as errors, self.start(*arguments, stderr=errors) as process:
            output = process.communicate()[0]
            if process.returncode:
                raise Failed(f"{self.name} fails with exit code {process.returncode}: {last_line(errors)}")
            return output

    def start(self, *arguments: str, stderr) -> subprocess.Popen:
        """Starts `python ARGUMENTS` with pipes for stdin and stdout. `stderr` is an open file that receives its stderr.

        Variables MLXGPT_* of this process are not passed on, except MLXGPT_CORPUS_DIR. Tuned settings are not used.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLXGPT_")}
        if folder := os.environ.get("MLXGPT_CORPUS_DIR"):
            kept["MLXGPT_CORPUS_DIR"] = str(Path(folder).resolve())
        environment, pipe = kept | {"PYTHONPATH": str(self.code), "MLXGPT_TUNED": "off"}, subprocess.PIPE
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command, cwd=self.home, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True
        )


def last_line(file) -> str:
    """Returns the last line of an open text file, or "no message" if the file is empty."""
    file.seek(0)
    return (file.read().strip().splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def both(old: str, new: str) -> Iterator[tuple[Side, Side]]:
    """A context that yields the two sides. Each argument is a git revision, or a folder that contains mlx_gpt."""
    with _code_of(old) as old_code, _code_of(new) as new_code, tempfile.TemporaryDirectory() as home:
        yield _side("old", old_code, Path(home)), _side("new", new_code, Path(home))


@contextlib.contextmanager
def _code_of(name: str) -> Iterator[Path]:
    """A context that yields the folder with the code of a side.

    For a git revision this is a temporary worktree, which is removed on exit. Exits the script if `name` is neither a
    folder that contains mlx_gpt nor a revision.
    """
    if Path(name, "mlx_gpt").is_dir():
        yield Path(name).resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "--quiet", "--detach", str(tree), name]).returncode:
            sys.exit(f"{name} is neither a git revision nor a folder that contains mlx_gpt")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _side(name: str, code: Path, home: Path) -> Side:
    """Makes a side with an empty working folder. Exits the script if its processes do not import the code in `code`."""
    side = Side(name, code, home / name)
    side.home.mkdir()
    found = side.python("-c", "import mlx_gpt; print(mlx_gpt.__file__)").strip()
    if not Path(found).is_relative_to(code):
        sys.exit(f"{name}: imports {found}, expected {code}")
    print(f"{name}: {code}", file=sys.stderr)
    return side
