"""Two versions of mlxgpt on one machine, each with its own code, run by the interpreter that runs this."""

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
    """A command of one side that failed, or whose output lacks what is compared."""


@dataclass(frozen=True)
class Side:
    """One version: the folder of its code, and a folder to run in."""

    name: str
    code: Path
    home: Path

    def run(self, *arguments: str) -> str:
        """What `mlxgpt ARGUMENTS` prints on stdout. Raises Failed with the last line that it wrote to stderr."""
        return self.python("-m", "mlx_gpt", *arguments)

    def python(self, *arguments: str) -> str:
        """As run(), of the interpreter."""
        with tempfile.TemporaryFile("w+") as told, self.start(*arguments, told=told) as process:
            output = process.communicate()[0]
            if process.returncode:
                raise Failed(f"{self.name} fails with exit code {process.returncode}: {last_line(told)}")
            return output

    def start(self, *arguments: str, told) -> subprocess.Popen:
        """The interpreter as a process with pipes; `told` is a file for its stderr."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLXGPT_")}
        if folder := os.environ.get("MLXGPT_CORPUS_DIR"):
            kept["MLXGPT_CORPUS_DIR"] = str(Path(folder).resolve())
        environment, pipe = kept | {"PYTHONPATH": str(self.code), "MLXGPT_TUNED": "off"}, subprocess.PIPE
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command, cwd=self.home, env=environment, stdin=pipe, stdout=pipe, stderr=told, text=True
        )


def last_line(file) -> str:
    """The last line of what was written to a file."""
    file.seek(0)
    return (file.read().strip().splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def both(old: str, new: str) -> Iterator[tuple[Side, Side]]:
    """The two sides, until the end of the block; each a git revision, or a folder that holds mlx_gpt."""
    with _code_of(old) as old_code, _code_of(new) as new_code, tempfile.TemporaryDirectory() as home:
        yield _side("old", old_code, Path(home)), _side("new", new_code, Path(home))


@contextlib.contextmanager
def _code_of(name: str) -> Iterator[Path]:
    """The folder of that name, or a git worktree of that revision until the end of the block."""
    if Path(name, "mlx_gpt").is_dir():
        yield Path(name).resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "--quiet", "--detach", str(tree), name]).returncode:
            sys.exit(f"{name} is no revision, and no folder that holds mlx_gpt")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _side(name: str, code: Path, home: Path) -> Side:
    """A side whose interpreter finds its own code. Exits where it finds another."""
    side = Side(name, code, home / name)
    side.home.mkdir()
    found = side.python("-c", "import mlx_gpt; print(mlx_gpt.__file__)").strip()
    if not Path(found).is_relative_to(code):
        sys.exit(f"{name}: {found} is imported, not {code}")
    print(f"{name}: {code}", file=sys.stderr)
    return side
