"""Evaluation of written code: the samples of a model, whatever else is drawn, and the baselines."""

import dataclasses

import pytest

import mlx_gpt
from mlx_gpt.code.languages import LANGUAGES
from mlx_gpt.code.settings import Settings
from mlx_gpt.errors import UserError
from mlx_gpt.rl.sandbox import Outcome, isolation

PASSED = Outcome(kind="passed", exit_code=0)
QUICK = Settings(language="python", limit=3, samples=3, max_tokens=12)


@pytest.fixture(autouse=True)
def without_rustc(monkeypatch):
    """Compiling is what tests/code measures. Here every language is Python's, which needs no compiler."""
    monkeypatch.setitem(LANGUAGES, "rust", LANGUAGES["python"])


def texts(report):
    return {(s.draft.problem.id, s.draft.seed): s.draft.text for s in report.model.samples}


def test_a_sample_depends_on_its_seed_and_its_prompt_alone(ascii_run):
    found = texts(mlx_gpt.evaluate_code(ascii_run, QUICK))
    assert len({seed for _, seed in found}) == 9 and len(set(found.values())) == 9
    for changes in ({"limit": 2}, {"samples": 2}, {"language": "all", "limit": 1}):
        fewer = texts(mlx_gpt.evaluate_code(ascii_run, dataclasses.replace(QUICK, **changes)))
        assert fewer and fewer.items() < found.items(), changes
    other = texts(mlx_gpt.evaluate_code(ascii_run, dataclasses.replace(QUICK, seed=1)))
    assert not other.keys() & found.keys()


LINE = '{"task_id": "%s", "prompt": "def f():  # %s\\n", "entry_point": "f", "test": ""}\n'


def test_a_sample_is_what_generate_writes(ascii_run, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(LINE % ("a", "x"))
    settings = Settings(language="python", problems=str(path), samples=2, max_tokens=20)
    for sample in mlx_gpt.evaluate_code(ascii_run, settings).model.samples:
        options = {"max_tokens": 20, "temperature": 0.8, "top_p": 1.0, "top_k": 50, "seed": sample.draft.seed}
        assert sample.draft.text == "".join(mlx_gpt.generate(ascii_run, "def f():  # x\n", **options))


def test_the_user_is_told_what_limits_the_result(ascii_run, small_run, monkeypatch):
    notes = []
    monkeypatch.setattr(type(LANGUAGES["python"]), "missing", lambda self: "no compiler; install it")
    mlx_gpt.evaluate_code(ascii_run, QUICK, note=notes.append)
    assert any("python: programs are parsed, but not compiled: no compiler" in note for note in notes)
    assert any("the context has 64 tokens, fewer than" in note for note in notes)
    assert not any("executed" in note for note in notes)
    with pytest.raises(UserError, match="python programs cannot be executed: no compiler"):
        mlx_gpt.evaluate_code(ascii_run, dataclasses.replace(QUICK, execute=True))
    monkeypatch.undo()
    notes.clear()
    mlx_gpt.evaluate_code(ascii_run, dataclasses.replace(QUICK, execute=True), note=notes.append)
    assert any("programs that the model wrote are executed" in note for note in notes)
    assert set(str(isolation()).splitlines()) <= set(notes)


def test_prompts_that_the_tokenizer_does_not_know_are_left_out(ascii_run, small_run, tmp_path):
    with pytest.raises(UserError, match="the tokenizer can encode no prompt; python/is_even has characters"):
        mlx_gpt.evaluate_code(small_run, QUICK)
    path, notes = tmp_path / "p.jsonl", []
    path.write_text(LINE % ("a", "x") + LINE % ("b", "ж"))
    settings = dataclasses.replace(QUICK, problems=str(path), language="python")
    report = mlx_gpt.evaluate_code(ascii_run, settings, note=notes.append)
    assert list(report.left_out) == ["b"] and "ж" in report.left_out["b"]
    assert {s.draft.problem.id for s in report.model.samples} == {"a"}
    assert any("left out: 1 of 2 prompts" in note for note in notes)
    assert report.summary("x")["left_out"] == report.left_out


def test_nothing_is_executed_unless_asked(ascii_run, tmp_path, monkeypatch):
    """The program is the prompt, which compiles and has tests."""
    executed, path, python = [], tmp_path / "p.jsonl", type(LANGUAGES["python"])
    monkeypatch.setattr(python, "complete", lambda self, prompt, written: prompt)
    monkeypatch.setattr(python, "run", lambda self, *arguments: executed.append(arguments) or PASSED)
    path.write_text(
        '{"task_id": 1, "prompt": "def f():\\n    return 1\\n", "entry_point": "f", "test": "def check(c): pass"}'
    )
    settings = Settings(language="python", problems=str(path), samples=2, max_tokens=1)
    report = mlx_gpt.evaluate_code(ascii_run, settings)
    assert not executed and report.model.totals()["valid"]["share"] == 1
    report = mlx_gpt.evaluate_code(ascii_run, dataclasses.replace(settings, execute=True, ks=(1,)))
    assert len(executed) == 1 and report.model.totals()["pass_at_k"]["1"]["value"] == 1


def test_baselines_have_the_same_settings(ascii_run, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_text("def f(x):\n    return x\n" * 200)
    with pytest.raises(UserError, match="5-gram .*--corpus"):
        mlx_gpt.evaluate_code(with_header(ascii_run, corpus=None), QUICK, baselines=True)
    report = mlx_gpt.evaluate_code(ascii_run, QUICK, baselines=True, corpus=corpus)
    assert list(report.baselines) == ["untrained", "5-gram"]
    own = [(s.draft.problem.id, s.draft.seed) for s in report.model.samples]
    for samples in report.baselines.values():
        assert [(s.draft.problem.id, s.draft.seed) for s in samples.samples] == own
    drawn = "".join(s.draft.text for s in report.baselines["5-gram"].samples)
    assert set(drawn) <= set("def f(x):\n    return x\n") and len(drawn) == 9 * 12
    again = mlx_gpt.evaluate_code(ascii_run, QUICK, baselines=True, corpus=corpus)
    for name, samples in report.baselines.items():
        assert [s.draft for s in samples.samples] == [s.draft for s in again.baselines[name].samples]
    assert [s.draft.text for s in report.baselines["untrained"].samples] != [s.draft.text for s in report.model.samples]


def test_a_changed_corpus_is_told(ascii_run, tmp_path):
    corpus, notes = tmp_path / "text.txt", []
    corpus.write_text("def f(x):\n    return x\n" * 200)
    config = ascii_run.config.replace({"data.corpus": (str(corpus),)})
    mlx_gpt.evaluate_code(with_header(ascii_run, config=config), QUICK, baselines=True, note=notes.append)
    assert any("has changed since the training" in note for note in notes)


def with_header(run, **changes):
    return dataclasses.replace(run, header=dataclasses.replace(run.header, **changes))


def test_a_run_without_a_tokenizer_is_refused(ascii_run):
    with pytest.raises(UserError, match="no tokenizer"):
        mlx_gpt.evaluate_code(dataclasses.replace(ascii_run, tokenizer=None), QUICK)
    with pytest.raises(UserError, match="mlx_gpt.load"):
        mlx_gpt.evaluate_code("runs/a", QUICK)
