"""Generated programs: each is correct, and the same everywhere."""

import ast
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from mlx_gpt.data.corpus import corpus_name, open_corpus
from mlx_gpt.data.patterns.plans import PLANS
from mlx_gpt.data.patterns.programs import LANGUAGES, program
from mlx_gpt.errors import UserError

RUSTC = shutil.which("rustc") or Path("~/.cargo/bin/rustc").expanduser()


def test_every_python_program_parses_and_passes_its_tests():
    """Whether its tests are functions or statements. Every pattern is among the programs."""
    found = set()
    for i in range(150):
        text = program("python", i)
        tree = ast.parse(text)
        assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        exec(compile(tree, f"program {i}", "exec"), {"__name__": "__main__"})
        found |= {name for name, plan in PLANS.items() if plan.__doc__.rstrip(".").lower() in text.lower()}
    assert found == set(PLANS)


def test_a_program_whose_result_is_changed_fails():
    """The tests in a program test its code."""
    failed = 0
    for i in range(60):
        changed = program("python", i).replace("return ", "return not ")
        try:
            exec(changed, {"__name__": "__main__"})
        except Exception:
            failed += 1
    assert failed > 50


@pytest.mark.slow
@pytest.mark.skipif(not Path(RUSTC).exists(), reason="needs rustc")
def test_every_rust_program_compiles_and_passes_its_tests(tmp_path):
    """Each program is a module of one crate, and main() of each is a test."""
    programs = [program("rust", i).replace("fn main()", "#[test]\npub fn main()") for i in range(400)]
    (tmp_path / "all.rs").write_text("".join(f"mod d{i} {{\n{text}}}\n" for i, text in enumerate(programs)))
    build = [RUSTC, "--test", "--edition", "2021", "-A", "dead_code", "-D", "warnings", "all.rs", "-o", "all"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([tmp_path / "all"], capture_output=True, text=True)
    assert done.returncode == 0 and f"{sum(text.count('#[test]') for text in programs)} passed" in done.stdout


def test_programs_are_a_corpus():
    both, more = open_corpus(["code-patterns:10"]), open_corpus(["code-patterns:30:2"])
    python, rust = (open_corpus([f"code-patterns-{name}:5"]).documents for name in ("python", "rust"))
    assert both.documents == more.documents[:10] and more.weights == (2.0,)
    assert both.documents == [text for pair in zip(python, rust, strict=True) for text in pair]
    assert len(set(open_corpus(["code-patterns:1000"]).documents)) == 1000
    assert corpus_name(["code-patterns:10"]) == "code-patterns-10"
    assert "Python and Rust" in both.notes[0]


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_size_is_nearly_known(name):
    corpus = open_corpus([f"{name}:400"])
    assert corpus.num_bytes == pytest.approx(sum(len(text.encode()) for text in corpus.documents), rel=0.15)


def test_the_text_is_the_same_on_every_platform():
    texts = open_corpus(["code-patterns:200"]).documents
    assert hashlib.sha256("".join(texts).encode()).hexdigest()[:16] == "0184530205cf137e"


@pytest.mark.parametrize("count", ["", ":", ":0", ":x", ":-3", ":1.5", ":1e3", ":1000001", ":99999999999", ":²"])
def test_a_wrong_number_of_programs_is_refused(count):
    with pytest.raises(UserError, match="from 1 to 1,000,000, as in code-patterns:500; a weight may follow"):
        open_corpus([f"code-patterns{count}"])


def test_a_wrong_weight_of_programs_is_refused():
    with pytest.raises(UserError, match="the weight must be above 0 .* as in code-patterns:5:2"):
        open_corpus(["code-patterns:5:0"])
