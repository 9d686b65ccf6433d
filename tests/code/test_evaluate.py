"""Judging of samples and their totals, with a toy language that needs no compiler."""

import json
from dataclasses import dataclass, field, replace

import pytest

from mlx_gpt.code import history
from mlx_gpt.code.evaluate import Draft, judge
from mlx_gpt.code.language import Findings
from mlx_gpt.code.problems import Problem
from mlx_gpt.code.report import Report, Samples, error_class
from mlx_gpt.code.settings import Settings
from mlx_gpt.code.statistics import pass_at_k, wilson
from mlx_gpt.errors import UserError
from mlx_gpt.rl.sandbox import Limits


@dataclass(frozen=True)
class Ended:
    """An outcome of the toy language."""

    kind: str
    error: str

    @property
    def passed(self):
        return self.kind == "passed"


@dataclass
class Toy:
    """A language whose programs are words. "!" does not parse, "?" does not compile, and the other words are defined.

    The tests of a program are words that it must define.
    """

    name: str = "toy"
    compiler: bool = True
    checked: list = field(default_factory=list)
    executed: list = field(default_factory=list)

    def check_all(self, texts):
        self.checked += texts
        return [self.check(text) for text in texts]

    def check(self, text):
        parses, compiles = "!" not in text, "?" not in text
        error = "" if parses and compiles else "error[E0308]: a question" if parses else "SyntaxError: line 1"
        return Findings(
            parses=parses,
            compiles=parses and compiles if self.compiler else None,
            error=error,
            lines=len(text.splitlines()),
            defined=frozenset(text.split()),
        )

    def complete(self, prompt, written):
        return prompt + written.partition(";")[0]

    def run(self, program, tests, limits):
        self.executed.append(program)
        passes = set(tests.split()) <= set(program.split())
        return Ended("passed", "") if passes else Ended("failed", "Assertion")


def problem(name="a", tests=""):
    return Problem(id=f"toy/{name}", language="toy", prompt=f"{name[0]} ", entry_point=name, tests=tests)


def drafts(asked, *texts):
    return [
        Draft(problem=asked, seed=i, text=text, num_tokens=len(text), finish_reason="stop" if i % 2 else "length")
        for i, text in enumerate(texts)
    ]


def samples(*groups, execute=False, compiler=True, ks=(1,)):
    limits = Limits() if execute else None
    judged = judge([draft for group in groups for draft in group], {"toy": Toy(compiler=compiler)}, limits)
    return Samples(samples=judged, seconds=2.0, executed=execute, ks=ks)


def report_of(found, step=3, settings=None):
    return Report(settings=settings or Settings(), step=step, model=found, baselines={}, left_out={})


def test_a_program_is_the_prompt_and_what_belongs_to_it():
    [found] = samples(drafts(problem(), "b; c !")).samples
    assert found.program == "a b" and found.findings.parses


def test_a_valid_program_compiles_and_defines_what_is_asked():
    """An empty program compiles, and is not valid."""
    texts = {"": False, "name": True, "name !": False, "name ?": False, "other": False}
    asked = replace(problem("name"), prompt="")
    found = samples(drafts(asked, *texts)).samples
    assert [sample.valid for sample in found] == list(texts.values())
    assert found[0].findings.compiles


def test_without_a_compiler_parsing_counts_and_compiling_is_unknown():
    found = samples(drafts(problem(), "b", "?", "!"), compiler=False)
    assert [sample.valid for sample in found.samples] == [True, True, False]
    assert found.totals()["compiles"] == {"count": 0, "total": 0, "share": None, "low": None, "high": None}
    summary = report_of(found).summary("x")
    assert summary["compile_success_rate"] is None


def test_nothing_is_executed_unless_asked():
    toy, asked = Toy(), problem(tests="b")
    found = judge(drafts(asked, "b", "c"), {"toy": toy}, None)
    assert not toy.executed and all(sample.outcome is None and not sample.passed for sample in found)


def test_only_programs_that_compile_are_executed_and_equal_ones_once():
    toy = Toy()
    found = judge(drafts(problem(tests="b"), "b", "c", "b", "!", "?"), {"toy": toy}, Limits())
    assert sorted(toy.executed) == ["a b", "a c"]
    assert len(toy.checked) == 4
    assert [sample.passed for sample in found] == [True, False, True, False, False]
    assert judge(drafts(problem(), "b"), {"toy": toy}, Limits())[0].outcome is None


def test_the_order_of_the_drafts_does_not_matter():
    given = [*drafts(problem(tests="b"), "b", "c", "!"), *drafts(problem("b"), "", "c")]
    found = judge(given, {"toy": Toy()}, Limits())
    assert judge(given[::-1], {"toy": Toy()}, Limits()) == found[::-1]
    assert [judge([draft], {"toy": Toy()}, Limits())[0] for draft in given] == found


def test_totals_count_the_samples():
    groups = drafts(problem(tests="b"), "b", "b", "c", "!"), drafts(problem("b", tests="c"), "?", "x", "y", "z")
    totals = samples(*groups, execute=True).totals()
    counts = {"parses": 7, "compiles": 6, "defines": 7, "valid": 6, "passes": 2, "ended": 4}
    for name, count in counts.items():
        low, high = wilson(count / 8, 8)
        assert totals[name] == {"count": count, "total": 8, "share": count / 8, "low": low, "high": high}, name
    assert totals["distinct"] == 7 / 8
    assert totals["errors"] == {"SyntaxError": 1, "E0308": 1}
    assert totals["outcomes"] == {"failed": 4, "passed": 2} and totals["failures"] == {"Assertion": 4}
    assert totals["tokens"] == sum(len(d.text) for group in groups for d in group)
    assert totals["tokens_per_second"] == totals["tokens"] / 2


def test_pass_at_k_leaves_out_problems_with_fewer_samples():
    """They do not count as 0. Problems without tests do not count either."""
    groups = drafts(problem(tests="b"), "b", "c", "c"), drafts(problem("b", "c"), "c"), drafts(problem("c"), *"xyz")
    found = samples(*groups, execute=True, ks=(1, 2, 9)).totals()["pass_at_k"]
    assert found["1"]["value"] == pytest.approx((1 / 3 + 1) / 2) and found["1"]["problems"] == 2
    low, high = wilson(found["1"]["value"], 2)
    assert (found["1"]["low"], found["1"]["high"]) == (low, high)
    assert found["2"] | {"low": 0, "high": 0} == {
        "value": pass_at_k(3, 1, 2), "low": 0, "high": 0, "problems": 1, "left_out": ["toy/b"],
    }  # fmt: skip
    assert found["9"] == {"value": None, "low": None, "high": None, "problems": 0, "left_out": ["toy/a", "toy/b"]}
    assert samples(*groups).totals()["pass_at_k"] == {"1": None}


@pytest.mark.parametrize(
    "error, expected",
    [("error[E0308]: x", "E0308"), ("IndentationError: E1 x", "IndentationError"), ("expected `;`", "syntax")],
)
def test_errors_have_classes(error, expected):
    [found] = samples(drafts(problem(), "!")).samples
    assert error_class(replace(found, findings=replace(found.findings, error=error))) == expected


def test_the_json_has_the_fields_of_the_older_report():
    asked = problem(tests="b")
    found = report_of(samples(drafts(asked, "b" * 300, "!", "?", "!", "b", "c"), execute=True)).to_json("run/best")
    json.dumps(found, allow_nan=False)
    assert found["checkpoint"] == "run/best" and found["total_samples"] == 6
    assert found["timestamp"][10] == "T" and found["timestamp"].endswith("+00:00")
    assert found["compile_success_rate"] == pytest.approx(50)
    assert found["compile_errors"] == ["SyntaxError: line 1", "error[E0308]: a question"]
    for name in ("avg_lines", "avg_functions", "avg_complexity", "avg_generation_time_ms", "tokens_per_second"):
        assert isinstance(found[name], float), name
    assert found["avg_generation_time_ms"] == pytest.approx(2000 / 6)
    [prompt] = found["samples_by_prompt"]
    assert prompt["prompt"] == "a " and prompt["n_samples"] == 6 and prompt["compile_success"] == 3
    assert prompt["common_errors"] == found["compile_errors"] and prompt["avg_lines"] == 1
    assert [len(text) for text in prompt["sample_outputs"]] == [200, 1, 1]
    assert [sample["passed"] for sample in prompt["samples"]] == [False, False, False, False, True, False]
    assert prompt["samples"][0]["text"] == "b" * 300 and prompt["samples"][4]["defined"] == ["a", "b"]


def test_the_history_has_the_results_with_the_same_settings_by_step(tmp_path):
    found = samples(drafts(problem(), "b"))
    for step, settings in ((20, Settings()), (10, Settings()), (30, Settings(seed=1)), (20, Settings())):
        summary = report_of(found, step, settings).summary(f"at {step}")
        history.append(tmp_path, summary)
    with open(tmp_path / history.NAME, "a") as file:
        file.write('{"step": 4')  # a process that was killed
    summary = report_of(found, 40).summary("at 40")
    history.append(tmp_path, summary)
    results, others = history.comparable(tmp_path, summary)
    assert [result["step"] for result in results] == [10, 20, 40] and others == 1
    assert results[-1]["totals"] == json.loads(json.dumps(summary["totals"]))
    assert "samples_by_prompt" not in results[0]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"language": "java"}, "language='java' .* python, rust, all"),
        ({"samples": 0}, "samples=0 .* from 1"),
        ({"max_tokens": 100_001}, "max_tokens=100001"),
        ({"limit": 0}, "limit=0"),
        ({"ks": (0,)}, r"ks=\(0,\)"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Settings(**options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"problems": "p.jsonl"}, "--language"),
        ({"problems": "rust-basics", "language": "python"}, "are in rust, not in python"),
        ({"problems": "absent.jsonl", "language": "python"}, "absent.jsonl: no such file"),
    ],
)
def test_problems_that_do_not_fit_the_language_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Settings(**options).open_problems()


def test_a_limit_takes_the_first_problems():
    assert Settings(limit=3).open_problems() == Settings().open_problems()[:3]
    assert len(Settings(problems="rust-basics").open_problems()) == 16


def test_what_follows_a_definition_makes_no_program_distinct():
    assert samples(drafts(problem(), "b;", "b;x", "b;y", "c;x")).totals()["distinct"] == 2 / 4
