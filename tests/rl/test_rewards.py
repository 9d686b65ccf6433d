"""Rewards: what earns one, what does not, plugins, and prompts."""

import dataclasses
import json
import re

import pytest

from mlx_gpt.code.languages import LANGUAGES
from mlx_gpt.code.problems import Problem
from mlx_gpt.code.prompts import prompts
from mlx_gpt.config.schema import RLConfig
from mlx_gpt.data.patterns.programs import program
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.rl.prompts import NUM_DEFAULT, default_prompts, training_prompts
from mlx_gpt.rl.rewards import make_reward

PROBLEM = Problem(id="p", language="python", prompt='def double(x):\n    """Twice x."""\n', entry_point="double")
PROBLEM_TESTS = "def check(candidate):\n    assert candidate(3) == 6\n\n\ncheck(double)\n"


def rewarded(reward, *texts, problem=PROBLEM):
    return [sum(parts.values()) for parts in reward([problem] * len(texts), list(texts))]


def test_only_a_program_that_compiles_and_does_something_is_rewarded():
    reward = make_reward(RLConfig())
    nothing = ["", "    pass\n", "    ...\n", "\n\n", "    return (\n", "    retrun x\n", PROBLEM.prompt, "x = 1\n"]
    assert max(rewarded(reward, *nothing)) <= 0
    assert rewarded(reward, "    return 2 * x\n", "    return x + x\n\n\ndef broken(:\n") == [1.0, 1.0]
    repeated = "    x = x\n" * 9 + "    return 2 * x\n"
    assert 0.5 < rewarded(reward, repeated)[0] < 0.7


def test_the_parts_are_the_same_for_every_text_and_do_not_depend_on_the_others():
    reward, texts = make_reward(RLConfig()), ["    return 2 * x\n", "    pass\n", "    return (\n"]
    together = reward([PROBLEM] * 3, texts)
    assert together == [reward([PROBLEM], [text])[0] for text in texts]
    assert {tuple(parts) for parts in together} == {("defines", "compiles", "repetition")}


def test_tests_are_executed_and_passing_them_is_what_counts():
    reward = make_reward(RLConfig(reward="tests", execute=True))
    problem = dataclasses.replace(PROBLEM, tests=PROBLEM_TESTS)
    texts = ("    return 2 * x\n", "    return 3 * x\n", "    return (\n")
    right, wrong, broken = rewarded(reward, *texts, problem=problem)
    assert (right, wrong, broken) == (1.5, 0.5, 0.0)


def test_a_plugin_is_a_function_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('def reward(prompt, text):\n    return {"a": len(prompt), "b": text.count("x")}\n')
    reward = make_reward(RLConfig(reward=str(path)))
    assert reward([PROBLEM], ["xx"]) == [{"a": float(len(PROBLEM.prompt)), "b": 2.0}]


@pytest.mark.parametrize(
    "code, words",
    [
        (None, "no such file; rl.reward names a Python file with a function reward"),
        ("x = 1", "has no function reward"),
        ("def reward(:", "cannot be imported: SyntaxError"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("def reward(prompt, text): return 1 / 0", "failed with ZeroDivisionError"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit"),
        ("import sys\ndef reward(prompt, text): sys.exit(0)", "failed with SystemExit"),
        ("def reward(prompt, text): return 1.0", "returned '1.0'; return finite numbers by name"),
        ("def reward(prompt, text): return {}", "return finite numbers by name"),
        ('def reward(prompt, text): return {"a": float("nan")}', "return finite numbers by name"),
        ('def reward(prompt, text): return {"a": "1"}', "return finite numbers by name"),
        ("def reward(prompt, text): return {1: 1.0}", "return finite numbers by name"),
    ],
)
def test_a_plugin_that_does_not_work_is_told_in_one_line(tmp_path, code, words):
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(UserError, match=words) as caught:
        make_reward(RLConfig(reward=str(path)))([PROBLEM], ["x"])
    assert "mine.py" in str(caught.value) and "\n" not in str(caught.value)


def test_other_names_are_refused():
    with pytest.raises(UserError, match="unknown reward rl.reward=compile; did you mean rl.reward=compiles"):
        make_reward(RLConfig(reward="compile"))
    with pytest.raises(UserError, match="unknown language"):
        make_reward(RLConfig(language="cobol"))


def completed(problem):
    """A prompt with the rest of its program, or with a body if it ends before that of a function."""
    if problem.language == "rust":
        return problem.prompt + "    todo!()\n}\n"
    if problem.id.startswith("stdlib"):
        return problem.prompt + "    return None or 1\n"
    text = program("python", int(problem.id.partition("/")[0].rpartition("-")[2]))
    definition = problem.prompt[re.search(r"^(@|def |class )", problem.prompt, re.MULTILINE).start() :]
    place, left = text.index(definition.splitlines()[0]), "".join(definition.split())
    while left:
        assert text[place].isspace() or text[place] == left[0]
        left, place = left[not text[place].isspace() :], place + 1
    rest = text[place:].removeprefix("\n") if problem.prompt.endswith("\n") else text[place:]
    return LANGUAGES["python"].complete(problem.prompt, rest)


@pytest.mark.parametrize("language", ["python", "rust"])
def test_default_prompts_can_be_completed_and_are_not_those_of_the_evaluation(language):
    found = default_prompts(language)
    assert len(found) == NUM_DEFAULT and found == default_prompts(language)
    assert len({p.id for p in found}) == NUM_DEFAULT
    assert not {p.prompt for p in found} & {p.prompt for p in prompts(language)}
    if LANGUAGES[language].missing() is None:
        shown = found[:: 1 if language == "python" else 13]
        for problem, checked in zip(shown, LANGUAGES[language].check_all(list(map(completed, shown))), strict=True):
            assert checked.compiles, (problem.prompt, checked.error)
            assert problem.entry_point in checked.defined or language == "rust"


def test_no_default_prompt_is_rewarded_without_a_text():
    found = default_prompts("python")
    assert all(parts["defines"] == 0 for parts in make_reward(RLConfig())(found, [""] * len(found)))
    ends = {"line": "\n", "docstring": '"""\n', "empty line": "\n\n"}
    assert all(any(p.prompt.endswith(end) for p in found) for end in ends.values())
    assert any(not p.prompt.endswith("\n") for p in found)  # within a line
    assert {p.prompt.count("class ") > 0 for p in found} == {True, False}


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a"}, {"prompt": "def f():", "task_id": "x/1", "entry_point": "f", "test": "f()", "more": [1]}]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second = training_prompts(RLConfig(prompts=str(path), language="rust"))
    assert (first.id, first.prompt, first.language, first.entry_point) == ("line 1", "a", "rust", "")
    assert (second.id, second.entry_point, second.tests) == ("x/1", "f", "f()")
    with pytest.raises(UserError, match="rl.reward=tests: the prompt line 1 has no tests"):
        training_prompts(RLConfig(prompts=str(path), reward="tests"))


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no such file; --prompts names a JSON Lines file"),
        ("", "has no prompts"),
        ("\n \n", "has no prompts"),
        ("nonsense", "line 1"),
        ('{"prompt": "a"}\n["prompt"]', "line 2: is not an object with a text prompt"),
        ('{"prompt": 3}', "line 1: is not an object with a text prompt"),
        ('{"prompt": ""}', "line 1: is not an object with a text prompt"),
        ('{"prompt": "a", "entry_point": 1}', "line 1: is not an object with a text prompt"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path, text, words):
    path = tmp_path / "prompts.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises((BadFile, UserError), match=words) as caught:
        training_prompts(RLConfig(prompts=str(path)))
    assert "prompts.jsonl" in str(caught.value) and "\n" not in str(caught.value)
