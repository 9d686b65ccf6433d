"""The problems of the package against the languages: their solutions compile, define what is asked for, and pass."""

import pytest

from mlx_gpt.code.evaluate import Draft, judge
from mlx_gpt.code.languages import LANGUAGES
from mlx_gpt.code.prompts import PROMPTS, SETS, problem_set, prompts
from mlx_gpt.rl.sandbox import Limits

FURTHER = {"python": "\n\ndef further(:\n", "rust": "\n\nfn further( {\n"}  # what a model may write after the solution


def judged(problems, text_of, limits=None):
    drafts = [Draft(problem=p, seed=0, text=text_of(p), num_tokens=1, finish_reason="stop") for p in problems]
    return judge(drafts, LANGUAGES, limits)


@pytest.fixture(params=PROMPTS)
def language(request):
    """The name of a language whose compiler is on this machine."""
    if reason := LANGUAGES[request.param].missing():
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def test_solutions_of_a_few_prompts_are_valid(language):
    found = judged(prompts(language)[::5], lambda p: p.solution)
    assert [(s.draft.problem.id, s.findings.error) for s in found if not s.valid] == []


def test_what_follows_a_solution_does_not_belong_to_it():
    for problem in prompts("all"):
        language, whole = LANGUAGES[problem.language], problem.prompt + problem.solution
        program = language.complete(problem.prompt, problem.solution + FURTHER[problem.language])
        assert program.rstrip() == whole.rstrip(), problem.id


def test_a_prompt_alone_is_not_valid(language):
    """Prompts of a few kinds; all of them in the slow test below."""
    assert not any(sample.valid for sample in judged(prompts(language)[::5], lambda p: ""))


@pytest.mark.slow
def test_every_solution_passes_and_no_prompt_alone_does(language):
    sets = [problem_set(name) for name, own in SETS.items() if own == language]
    problems = sum(sets, prompts(language))
    found = judged(problems, lambda p: p.solution + FURTHER[language], Limits())
    wrong = {s.draft.problem.id: s.findings.error or s.outcome for s in found if not s.valid}
    wrong |= {s.draft.problem.id: s.outcome for s in found if s.draft.problem.tests and not s.passed}
    assert not wrong
    assert not {s.draft.problem.id for s in judged(problems, lambda p: "", Limits()) if s.valid or s.passed}
