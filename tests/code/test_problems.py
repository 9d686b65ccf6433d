"""Files of problems: what is read, and what is refused with the line."""

import ast
import gzip
import json

import pytest

from mlx_gpt.code.problems import MAX_CHARACTERS, MAX_PROBLEMS, read_problems
from mlx_gpt.code.prompts import PROMPTS, SETS, problem_set, prompts
from mlx_gpt.errors import BadFile, UserError

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(1) == 1\n\n",
}
MBPP = {
    "task_id": 602,
    "text": 'Write a function to "find" the \\first repeated character.',
    "code": "import re\r\ndef other(a):\r\n  return a\r\ndef first(s, n=1):\r\n  return other(s)[0]",
    "test_list": ['assert first("aa") == "a"', 'assert first("ba", 2) == "b"'],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}


def written(path, *values):
    text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def executed(program, tests):
    names: dict = {}
    exec(program, names)
    exec(tests, names)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_a_problem_of_humaneval_is_read_and_its_solution_passes(tmp_path, name):
    [found] = read_problems(written(tmp_path / name, "", HUMANEVAL, "  "), "python")
    assert (found.id, found.prompt, found.entry_point) == ("HumanEval/0", "def f(x):\n", "f")
    executed(found.prompt + found.solution, found.tests)
    with pytest.raises(AssertionError):
        executed(found.prompt + "    return 2\n", found.tests)


@pytest.mark.parametrize("array", [False, True])
def test_a_problem_of_mbpp_is_a_signature_with_the_task_and_the_tests(tmp_path, array):
    path = tmp_path / "mbpp.json"
    [found] = read_problems(written(path, [MBPP] if array else MBPP), "python")
    assert (found.id, found.entry_point) == ("602", "first")
    assert found.prompt.startswith("def first(s, n=1):\n")
    [function] = ast.parse(found.prompt + "    return s[0]\n").body
    assert ast.get_docstring(function) == "\n".join([MBPP["text"], *MBPP["test_list"]])
    executed(found.prompt + "    return s[0]\n", found.tests)
    with pytest.raises(AssertionError):
        executed(found.prompt + "    return 'x'\n", found.tests)


def test_the_sanitized_file_of_mbpp_has_other_names(tmp_path):
    value = {name: MBPP[name] for name in ("task_id", "code", "test_list")}
    value |= {"prompt": "A task.", "test_imports": ["import math"]}
    [found] = read_problems(written(tmp_path / "p.json", [value]), "python")
    assert '"""A task.' in found.prompt and found.tests.startswith("import math\n")


BAD = [
    # the lines of a file, words of the message
    ([], "has no problems"),
    (["{"], "line 1"),
    ([HUMANEVAL, "[]x"], "line 2"),
    ([HUMANEVAL, HUMANEVAL], "line 2: task_id 'HumanEval/0' occurs before"),
    (["1"], "line 1: is not a JSON object"),
    ([{}], "line 1: has no field 'task_id'; .*entry_point"),
    ([{**HUMANEVAL, "prompt": 3}], "line 1: prompt is int, not a string"),
    ([{**HUMANEVAL, "prompt": " "}], "prompt is empty"),
    ([{**HUMANEVAL, "entry_point": "f(x)"}], r"entry_point 'f\(x\)' is not a name"),
    ([{**HUMANEVAL, "entry_point": None}], "entry_point"),
    ([{**HUMANEVAL, "task_id": [1]}], "task_id"),
    ([{**HUMANEVAL, "task_id": True}], "task_id"),
    ([{**HUMANEVAL, "test": "x" * (MAX_CHARACTERS + 1)}], "test has 100,001 characters"),
    ([{**MBPP, "code": "def f(:"}], "code is not a Python program"),
    ([{**MBPP, "test_list": ["assert first(1) == "]}], "test_list is not a Python program"),
    ([{**HUMANEVAL, "test": "def check(candidate:"}], "test is not a Python program"),
    ([{**MBPP, "test_list": ["assert g(1)"]}], "calls no function of code"),
    ([{**MBPP, "test_list": []}], "calls no function of code"),
    ([{**MBPP, "test_list": "assert"}], "test_list is not a list of strings"),
    ([{**MBPP, "test_list": ["x" * (MAX_CHARACTERS + 1)]}], "test_list has more than"),
    ([{name: MBPP[name] for name in ("task_id", "code", "test_list")}], "no field 'text'"),
    (['{"task_id": NaN}'], "line 1"),
    (["[" * 100], "nested"),
    (['{"task_id": "\\ud800"}'], "surrogate"),
    (["[[]]"], "item 1: is not a JSON object"),
]


@pytest.mark.parametrize("lines, words", BAD)
def test_a_file_that_is_not_valid_is_refused_with_the_place(tmp_path, lines, words):
    with pytest.raises(BadFile, match=words) as error:
        read_problems(written(tmp_path / "p.jsonl", *lines), "python")
    assert "\n" not in str(error.value) and "p.jsonl" in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_problems(tmp_path / "absent.jsonl", "python")
    with pytest.raises(BadFile, match="folder"):
        read_problems(tmp_path, "python")
    (tmp_path / "p.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(BadFile, match="gzip"):
        read_problems(tmp_path / "p.jsonl.gz", "python")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b"\0" * (65 << 20), 9))
    with pytest.raises(BadFile, match="expands to more than"):
        read_problems(tmp_path / "p.jsonl.gz", "python")


def test_too_many_problems_are_refused(tmp_path):
    lines = ({**HUMANEVAL, "task_id": i, "test": ""} for i in range(MAX_PROBLEMS + 1))
    with pytest.raises(BadFile, match="more than 10,000 problems"):
        read_problems(written(tmp_path / "p.jsonl", *lines), "python")


def test_mbpp_is_in_python(tmp_path):
    with pytest.raises(BadFile, match="MBPP, whose language is python"):
        read_problems(written(tmp_path / "p.jsonl", MBPP), "rust")


@pytest.mark.parametrize("language", PROMPTS)
def test_each_language_has_sixteen_prompts(language):
    found = prompts(language)
    assert len(found) == len({p.prompt for p in found}) == len({p.id for p in found}) == 16
    assert all(p.language == language and p.solution and p.entry_point in p.prompt for p in found)
    assert all(p.tests for p in found)


def test_the_prompts_of_all_languages_are_those_of_each():
    assert prompts("all") == [p for language in PROMPTS for p in prompts(language)]


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_sixteen_problems_with_tests(name):
    found = problem_set(name)
    assert len(found) == 16 and all(p.tests and p.solution for p in found)
    others = {p.prompt for p in prompts(SETS[name])}
    assert not others & {p.prompt for p in found}


def test_solutions_of_python_pass_their_tests_and_nothing_less_does():
    for problem in prompts("python"):
        executed(problem.prompt + problem.solution, problem.tests)
        with pytest.raises((AssertionError, SyntaxError, NameError, TypeError, AttributeError, KeyError)):
            executed(problem.prompt + "        pass\n", problem.tests)
