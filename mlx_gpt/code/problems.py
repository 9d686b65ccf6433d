"""Reads problems that programs solve: the formats of HumanEval (arXiv:2107.03374) and MBPP (arXiv:2108.07732).

A file has one JSON object on each line. MBPP's may also be one JSON array. A file whose name ends in .gz is
decompressed. The fields tell the two formats apart:

    HumanEval  task_id, prompt, entry_point, test, and optionally canonical_solution
    MBPP       task_id, text or prompt, code, test_list, and optionally test_setup_code or test_imports

Fields of the same name in other files of these formats have the same meaning. Further fields are ignored.
"""

import ast
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.errors import BadFile
from mlx_gpt.parse import MAX_BYTES, parse_json, read_bytes

MAX_PROBLEMS = 10_000
MAX_CHARACTERS = 100_000  # of a field
HUMANEVAL, MBPP = ("task_id", "prompt", "entry_point", "test"), ("task_id", "code", "test_list")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A program to complete.

    Attributes:
        id: Its name, unique in its file, such as "HumanEval/0".
        language: The name of its language, such as "python".
        prompt: The beginning of the program. A program that solves it is the prompt followed by a completion.
        entry_point: Name of the function or type that the program must define.
        tests: Code that follows the program and fails if the program is wrong; "" if there is none.
        solution: A completion that solves it; "" if the file has none, as those of MBPP.
    """

    id: str
    language: str
    prompt: str
    entry_point: str
    tests: str = ""
    solution: str = ""


def read_problems(path: Path, language: str) -> list[Problem]:
    """Reads a file of problems.

    Args:
        path: The file.
        language: The name of the language of its problems. Problems of MBPP are in Python.

    Raises:
        UserError: There is no such file.
        BadFile: The file cannot be read, exceeds a limit, has no problem, or has one that is not valid. The message has
            the line, or the number of the item in an array.
    """
    problems, seen = [], set()
    for place, value in _values(path):
        if len(problems) == MAX_PROBLEMS:
            raise BadFile(f"{path}: has more than {MAX_PROBLEMS:,} problems, the largest number that is read")
        problem = _problem(value, place, language)
        if problem.id in seen:
            raise BadFile(f"{place}: task_id {problem.id[:60]!r} occurs before; give each problem its own")
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        raise BadFile(f"{path}: has no problems; give a file in the format of HumanEval or MBPP")
    return problems


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields each JSON value of a file, and its place for messages."""
    data = read_bytes(path)
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise BadFile(f"{path}: not a complete gzip file: {error}; download or compress it again") from None
        if len(data) > MAX_BYTES:
            raise BadFile(f"{path}: expands to more than {MAX_BYTES:,} bytes, the largest size that is read")
    if data.lstrip()[:1] == b"[":
        for number, value in enumerate(parse_json(data, str(path)), 1):
            yield f"{path}: item {number}", value
        return
    yield from json_lines(data, path)


def json_lines(data: bytes, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields each JSON value of JSON Lines, and its place for messages, such as "FILE: line 3"."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            place = f"{path}: line {number}"
            yield place, parse_json(line, place)


def _problem(value: Any, place: str, language: str) -> Problem:
    """Converts a JSON value to a problem. Raises BadFile, which names the place, if that is not possible."""
    if not isinstance(value, dict):
        raise BadFile(f"{place}: is not a JSON object; give an object with the fields {', '.join(HUMANEVAL)}")
    is_mbpp = "test_list" in value
    for name in MBPP if is_mbpp else HUMANEVAL:
        if name not in value:
            raise BadFile(f"{place}: has no field {name!r}; the format {_FORMATS[is_mbpp]}")
    if is_mbpp and language != "python":
        raise BadFile(f"{place}: is a problem of MBPP, whose language is python; leave out --language {language}")
    return (_mbpp if is_mbpp else _humaneval)(value, place, language)


_FORMATS = {False: f"of HumanEval has {', '.join(HUMANEVAL)}", True: f"of MBPP has {', '.join(MBPP)} and text"}


def _humaneval(value: dict, place: str, language: str) -> Problem:
    text, entry_point = _reader(value, place), value["entry_point"]
    if not (isinstance(entry_point, str) and entry_point.isidentifier() and len(entry_point) <= 200):
        raise BadFile(f"{place}: entry_point {str(entry_point)[:60]!r} is not a name; give the name to define")
    if not text("prompt").strip():
        raise BadFile(f"{place}: prompt is empty; give the beginning of a program")
    tests = text("test")
    if language == "python" and tests:
        tests = _parsed(f"{tests.rstrip()}\n\n\ncheck({entry_point})\n", "test", place)
    return Problem(
        id=_id(value, place),
        language=language,
        prompt=text("prompt"),
        entry_point=entry_point,
        tests=tests,
        solution=text("canonical_solution", ""),
    )


def _mbpp(value: dict, place: str, language: str) -> Problem:
    """A problem whose prompt is the signature of the reference solution, with the task and the tests as docstring."""
    text, task = _reader(value, place), "text" if "text" in value else "prompt"
    if task not in value:
        raise BadFile(f"{place}: has no field 'text'; the format {_FORMATS[True]}")
    tests, imports = _texts(value, "test_list", place), _texts(value, "test_imports", place)
    entry_point, signature = _signature(text("code"), tests, place)
    lines = [text(task).strip(), *tests]
    doc = "\n".join(lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    indented = doc.replace("\n", "\n    ")
    return Problem(
        id=_id(value, place),
        language=language,
        prompt=f'{signature}\n    """{indented}\n    """\n',
        entry_point=entry_point,
        tests=_parsed("\n".join([*imports, text("test_setup_code", ""), *tests]).strip() + "\n", "test_list", place),
    )


def _parsed(tests: str, name: str, place: str) -> str:
    """Returns tests in Python. Raises BadFile if they cannot be parsed: every program would fail them."""
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadFile(f"{place}: {name} is not a Python program: {error}; correct it or leave it out") from None
    return tests


def _signature(code: str, tests: list[str], place: str) -> tuple[str, str]:
    """Returns the name of the function that the tests call, and its signature, from the reference solution.

    It is the function of the reference solution that the first test names first.
    """
    try:
        functions = {node.name: node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadFile(f"{place}: code is not a Python program; give the reference solution") from None
    called = [name for name in re.findall(r"[^\W\d]\w*", tests[0]) if name in functions] if tests else []
    if not called:
        raise BadFile(f"{place}: the first test calls no function of code; give a test of a function that it defines")
    node = functions[called[0]]
    return node.name, f"def {node.name}({ast.unparse(node.args)}):"


def _id(value: dict, place: str) -> str:
    found = value["task_id"]
    if type(found) not in (int, str) or not 0 < len(str(found)) <= 200:
        raise BadFile(f"{place}: task_id {str(found)[:60]!r} is not a name; give a string or a whole number")
    return str(found)


def _reader(value: dict, place: str) -> Callable[..., str]:
    """Returns a function that returns a field of type string, or a default if there is no such field."""

    def text(name: str, default: str | None = None) -> str:
        found = value.get(name, default)
        if not isinstance(found, str):
            raise BadFile(f"{place}: {name} is {type(found).__name__}, not a string")
        if len(found) > MAX_CHARACTERS:
            raise BadFile(f"{place}: {name} has {len(found):,} characters; give at most {MAX_CHARACTERS:,}")
        return found

    return text


def _texts(value: dict, name: str, place: str) -> list[str]:
    found = value.get(name, [])
    if not (isinstance(found, list) and all(isinstance(text, str) for text in found)):
        raise BadFile(f"{place}: {name} is not a list of strings")
    if sum(map(len, found)) > MAX_CHARACTERS:
        raise BadFile(f"{place}: {name} has more than {MAX_CHARACTERS:,} characters")
    return found
