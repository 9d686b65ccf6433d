"""Runs two versions of mlxgpt on one machine, each with its own code, with the interpreter that runs this file."""

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
    """A command of a side failed, or its output lacks what is compared."""


@dataclass(frozen=True)
class Side:
    """One version.

    Attributes:
        name: "old" or "new".
        code: The folder that contains mlx_gpt.
        home: The working folder of its processes.
    """

    name: str
    code: Path
    home: Path

    def run(self, *arguments: str) -> str:
        """Runs `mlxgpt ARGUMENTS`. Returns its stdout. Raises Failed with the last line of its stderr."""
        return self.python("-m", "mlx_gpt", *arguments)

    def python(self, *arguments: str) -> str:
        """Like run(), for `python ARGUMENTS`."""
        with tempfile.TemporaryFile("w+") as errors, self.start(*arguments, stderr=errors) as process:
            output = process.communicate()[0]
            if process.returncode:
                raise Failed(f"{self.name} fails with exit code {process.returncode}: {last_line(errors)}")
            return output

    def start(self, *arguments: str, stderr) -> subprocess.Popen:
        """Starts `python ARGUMENTS` with pipes for stdin and stdout. `stderr` is a file for its stderr."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLXGPT_")}
        if folder := os.environ.get("MLXGPT_CORPUS_DIR"):
            kept["MLXGPT_CORPUS_DIR"] = str(Path(folder).resolve())
        environment, pipe = kept | {"PYTHONPATH": str(self.code), "MLXGPT_TUNED": "off"}, subprocess.PIPE
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command, cwd=self.home, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True
        )


def last_line(file) -> str:
    """The last line of a file."""
    file.seek(0)
    return (file.read().strip().splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def both(old: str, new: str) -> Iterator[tuple[Side, Side]]:
    """A context with the two sides. Each argument is a git revision, or a folder that contains mlx_gpt."""
    with _code_of(old) as old_code, _code_of(new) as new_code, tempfile.TemporaryDirectory() as home:
        yield _side("old", old_code, Path(home)), _side("new", new_code, Path(home))


@contextlib.contextmanager
def _code_of(name: str) -> Iterator[Path]:
    """A context with the code of a side: a folder, or a git worktree of a revision, which exists in the context."""
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
    """Makes a side, and checks that its interpreter imports its own code. Exits if it imports another."""
    side = Side(name, code, home / name)
    side.home.mkdir()
    found = side.python("-c", "import mlx_gpt; print(mlx_gpt.__file__)").strip()
    if not Path(found).is_relative_to(code):
        sys.exit(f"{name}: imports {found}, expected {code}")
    print(f"{name}: {code}", file=sys.stderr)
    return side
