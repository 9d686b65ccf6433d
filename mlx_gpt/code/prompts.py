"""The problems of the package: sixteen prompts for each language, and sixteen problems with tests for Rust.

They are files in the format of HumanEval, in the folder tasks/. Each prompt can be completed by itself: the program
needs nothing that is defined elsewhere. They cover signatures, data types, collections, errors, iterators, and classes
or traits.
"""

from pathlib import Path

from mlx_gpt.code.problems import Problem, read_problems

TASKS = Path(__file__).parent / "tasks"
PROMPTS = ("python", "rust")  # the languages; each has a file of prompts with its name
SETS = {"rust-basics": "rust"}  # further sets, and their languages


def prompts(language: str) -> list[Problem]:
    """Returns the prompts of a language: one of PROMPTS, or "all"."""
    names = PROMPTS if language == "all" else (language,)
    return [problem for name in names for problem in read_problems(TASKS / f"{name}.jsonl", name)]


def problem_set(name: str) -> list[Problem]:
    """Returns the problems of one of SETS."""
    return read_problems(TASKS / f"{name}.jsonl", SETS[name])
