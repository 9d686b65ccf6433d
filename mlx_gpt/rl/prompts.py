"""Prompts of reinforcement learning: those of a file, or the default ones."""

import ast
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from mlx_gpt.code.languages import language_of
from mlx_gpt.code.problems import Problem, json_lines
from mlx_gpt.config.schema import RLConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.data.corpus import BUILT_IN
from mlx_gpt.data.patterns.programs import MAX_PROGRAMS, program
from mlx_gpt.data.patterns.words import Draw
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import read_bytes

NUM_DEFAULT = 256  # prompts if no file is named
Beginning = tuple[str, str, str]  # the name of a prompt, the name that its program must define, and the prompt


def training_prompts(config: RLConfig) -> list[Problem]:
    """Returns the prompts that `rl.prompts` names: those of a file, or generated ones.

    Raises:
        UserError: There is no such file, no prompts are generated for the language, or the reward is `tests` and a
            prompt has none.
        BadFile: The file is not valid.
    """
    path = Path(config.prompts)
    prompts = read_prompts(path, config.language) if config.prompts else default_prompts(config.language)
    if config.reward == "tests" and (without := next((p.id for p in prompts if not p.tests), None)):
        raise UserError(
            f"rl.reward=tests: the prompt {without} has no tests; give prompts with tests as --prompts FILE"
        )
    return prompts


def default_prompts(language: str) -> list[Problem]:
    """Returns NUM_DEFAULT prompts: beginnings of generated programs, and of functions of Python's standard library.

    The two alternate for Python. No prompt is a complete definition. The generated programs are none of the corpora
    `code-patterns`, which hold the first MAX_PROGRAMS of them.

    Raises:
        UserError: There are no prompts for the language.
    """
    sources = [source() for source in lookup(SOURCES, language, "language", prefix="rl.language=")]
    found = itertools.islice(itertools.chain.from_iterable(zip(*sources, strict=False)), NUM_DEFAULT)
    return [Problem(id=name, language=language, prompt=text, entry_point=entry) for name, entry, text in found]


def generated(language: str) -> Iterator[Beginning]:
    """Yields beginnings of the definitions of generated programs, without end."""
    for index in itertools.count(MAX_PROGRAMS):
        for entry, prompt in BEGINNINGS[language](program(language, index), Draw(f"prompts/{language}/{index}")):
            yield f"{language}-{index}/{entry}", entry, prompt


def standard_library() -> Iterator[Beginning]:
    """Yields signatures with docstrings of functions of Python's standard library, in the order of their hashes."""
    heads = {match for text in BUILT_IN["stdlib"]() for match in PYTHON_HEAD.findall(text)}
    hashed = ((hashlib.sha256(prompt.encode()).hexdigest(), prompt, entry) for prompt, entry in heads)
    for digest, prompt, entry in sorted(hashed):
        if language_of("python").check(f"{prompt}    pass\n").compiles:
            yield f"stdlib-{digest[:8]}/{entry}", entry, prompt


def python_beginnings(text: str, draw: Draw) -> Iterator[tuple[str, str]]:
    """Yields the name and a beginning of each function and class of a program, except for its tests.

    A beginning has the imports that it needs, and ends after any line from the docstring on, or within the next line.
    A docstring at its end is followed by an empty line in half of the cases.
    """
    tree, lines = ast.parse(text), text.splitlines()
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("test_"):
            continue
        first, head = min(n.lineno for n in (node, *node.decorator_list)) - 1, node.body[0].end_lineno
        end = draw.between(head, node.end_lineno - 1)
        shown = "\n".join([*lines[first:end], *([""] if end == head and draw.below(2) else []), ""])
        words = re.split(r"(?<=\S) ", lines[end])
        shown += " ".join(words[: draw.below(len(words))]) if draw.below(4) == 0 else ""
        needed = [i for i in imports if any(re.search(rf"\b{a.name}\b", shown) for a in i.names)]
        prompt = "".join(f"{ast.unparse(i)}\n" for i in needed) + "\n\n" * bool(needed) + shown
        if node.name not in language_of("python").check(prompt).defined:
            yield node.name, prompt


def rust_beginnings(text: str, draw: Draw) -> Iterator[tuple[str, str]]:
    """Yields the name and the signature, with its comment, of each function of a program that needs no other items."""
    for match in RUST_FUNCTION.finditer(text):
        if RUST_OWN_TYPE.search(match.group().splitlines()[-1]) is None:
            yield match.group(1), match.group()


# A function in Python up to its body. The groups are all of it, and its name.
PYTHON_HEAD = re.compile(r'^(def (\w+)\([^\n]{,80}\):\n    """[^"\\]{,240}"""\n)(?=    )', re.MULTILINE)
# A function in Rust up to its body. The group is its name.
RUST_FUNCTION = re.compile(r"^(?:///.*\n)+(?:pub )?fn (\w+)\(.*\{\n", re.MULTILINE)
# A type in the signature of a function in Rust that the standard library does not define without `use`.
RUST_OWN_TYPE = re.compile(r"\b(?!String\b|Vec\b|Option\b|Result\b|Some\b|Fn\b|Iterator\b|Item\b)[A-Z]\w+")
# Language -> beginnings of a program.
BEGINNINGS = {"python": python_beginnings, "rust": rust_beginnings}
# Language -> sources of prompts, which alternate.
SOURCES = {
    "python": (functools.partial(generated, "python"), standard_library),
    "rust": (functools.partial(generated, "rust"),),
}


def read_prompts(path: Path, language: str) -> list[Problem]:
    """Reads a JSON Lines file. Each line is an object with the text `prompt`.

    It may have the texts `task_id`, `entry_point` (the name that the program must define) and `test`, as in HumanEval.

    Raises:
        UserError: There is no such file.
        BadFile: A line is not such an object, or there is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; --prompts names a JSON Lines file with a prompt on each line")
    found = []
    for place, data in json_lines(read_bytes(path), path):
        names = ("prompt", "task_id", "entry_point", "test")
        values = {name: data.get(name, "") for name in names} if isinstance(data, dict) else {}
        if not values.get("prompt") or not all(isinstance(value, str) for value in values.values()):
            raise BadFile(f"{place}: is not an object with a text prompt, such as " + '{"prompt": "def f(x):"}')
        found.append(
            Problem(
                id=values["task_id"] or place.rpartition(": ")[2],
                language=language,
                prompt=values["prompt"],
                entry_point=values["entry_point"],
                tests=values["test"],
            )
        )
    if not found:
        raise BadFile(f"{path}: has no prompts; write one JSON object on each line")
    return found
