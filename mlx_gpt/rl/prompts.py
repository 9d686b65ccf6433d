"""Prompts of reinforcement learning: those of a file, or generated ones."""

import re
from pathlib import Path

from mlx_gpt.code.problems import Problem, json_lines
from mlx_gpt.config.schema import RLConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.data.patterns.programs import MAX_PROGRAMS, program
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import read_bytes

NUM_GENERATED = 256  # generated prompts
# How a function of a generated program begins, up to its body. The group is its name.
FUNCTIONS = {
    "python": re.compile(r'^def (\w+)\(.*\n    """.*"""\n', re.MULTILINE),
    "rust": re.compile(r"^(?:///.*\n)+(?:pub )?fn (\w+)\(.*\{\n", re.MULTILINE),
}
# A type in the signature of a function in Rust that the standard library does not define without `use`.
OWN_TYPE = re.compile(r"\b(?!String\b|Vec\b|Option\b|Result\b|Some\b|Fn\b|Iterator\b|Item\b)[A-Z]\w+")


def training_prompts(config: RLConfig) -> list[Problem]:
    """Returns the prompts that `rl.prompts` names: those of a file, or generated ones.

    Raises:
        UserError: There is no such file, no prompts are generated for the language, or the reward is `tests` and a
            prompt has none.
        BadFile: The file is not valid.
    """
    path = Path(config.prompts)
    prompts = read_prompts(path, config.language) if config.prompts else generated(config.language)
    if config.reward == "tests" and (without := next((p.id for p in prompts if not p.tests), None)):
        raise UserError(
            f"rl.reward=tests: the prompt {without} has no tests; give prompts with tests as --prompts FILE"
        )
    return prompts


def generated(language: str) -> list[Problem]:
    """Returns the beginnings of functions of generated programs: signatures with a description.

    The programs are none of the corpora `code-patterns`, which hold the first MAX_PROGRAMS of them.

    Raises:
        UserError: There are no programs of the language.
    """
    pattern, found, index = lookup(FUNCTIONS, language, "language", prefix="rl.language="), [], MAX_PROGRAMS
    while len(found) < NUM_GENERATED:
        for match in pattern.finditer(program(language, index)):
            text, name = match.group(), match.group(1)
            if OWN_TYPE.search(text.splitlines()[-1]) is None or language == "python":
                found.append(Problem(id=f"{language}-{index}/{name}", language=language, prompt=text, entry_point=name))
        index += 1
    return found[:NUM_GENERATED]


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
