"""Judges the programs that a model has written: what their language says of them, and whether their tests pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_gpt.code.language import Findings, Language
from mlx_gpt.code.problems import Problem
from mlx_gpt.rl.sandbox import Limits, Outcome, side_by_side


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A text that a model wrote after the prompt of a problem.

    Attributes:
        problem: The problem.
        seed: Seed of the draws.
        text: The text, without the prompt.
        num_tokens: Number of tokens, or of characters for a model of characters.
        finish_reason: "stop" if the text ended by itself, "length" at the maximum number of tokens.
    """

    problem: Problem
    seed: int
    text: str
    num_tokens: int
    finish_reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A draft and what is known of its program.

    Attributes:
        draft: The draft.
        program: The prompt, and the part of the text that belongs to the definition which the prompt begins.
        findings: What the language's parser and compiler say of the program.
        outcome: How its tests ended. None if they were not executed: execution was not requested, the problem has no
            tests, or the program does not parse or compile.
    """

    draft: Draft
    program: str
    findings: Findings
    outcome: Outcome | None

    @property
    def defines(self) -> bool:
        """Whether the program parses and defines what the problem asks for."""
        return self.findings.parses and self.draft.problem.entry_point in self.findings.defined

    @property
    def valid(self) -> bool:
        """Whether the program compiles and defines what the problem asks for.

        Without a compiler, parsing counts. A program that only compiles is not enough: an empty one does.
        """
        return is_accepted(self.findings) and self.defines

    @property
    def passed(self) -> bool:
        """Whether the tests were executed and passed."""
        return self.outcome is not None and self.outcome.passed


def is_accepted(findings: Findings) -> bool:
    """Whether the parser accepts a program, and the compiler too if there is one."""
    return findings.parses and findings.compiles is not False


def judge(drafts: Sequence[Draft], languages: Mapping[str, Language], limits: Limits | None) -> list[Sample]:
    """Checks the programs of drafts. Equal programs are checked and executed once.

    Args:
        drafts: The drafts.
        languages: The languages of their problems by name.
        limits: The limits of an execution. None executes nothing.

    Returns:
        A sample for each draft, in their order.
    """
    programs = [languages[d.problem.language].complete(d.problem.prompt, d.text) for d in drafts]
    keys = [(draft.problem.language, program) for draft, program in zip(drafts, programs, strict=True)]
    findings: dict[tuple[str, str], Findings] = {}
    for name in dict.fromkeys(language for language, _ in keys):
        own = list(dict.fromkeys(program for language, program in keys if language == name))
        findings |= zip(((name, program) for program in own), languages[name].check_all(own), strict=True)
    runs = [(*key, draft.problem.tests) for draft, key in zip(drafts, keys, strict=True)]
    wanted = {run for run, key in zip(runs, keys, strict=True) if limits and run[2] and is_accepted(findings[key])}
    waiting = [run for run in dict.fromkeys(runs) if run in wanted]
    outcomes = dict(
        zip(waiting, side_by_side(lambda run: languages[run[0]].run(*run[1:], limits), waiting), strict=True)
    )
    return [
        Sample(draft=draft, program=key[1], findings=findings[key], outcome=outcomes.get(run))
        for draft, key, run in zip(drafts, keys, runs, strict=True)
    ]
