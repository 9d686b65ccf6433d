"""Lines of a checkpoint's corpus as prompts: only of a text that is here and is the one it was trained on."""

import pytest

from mlx_gpt.data import library
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.excerpts import LONGEST, SHORTEST, excerpts

TEXT = "\n".join(["First line here", "ab", "", "x" * 99, *(f"line number {i}" for i in range(40)), "line number 1"])


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def fingerprint(*specs):
    return open_corpus(specs).fingerprint


def test_the_lines_are_different_lines_of_the_text(spec):
    lines = excerpts([spec], fingerprint(spec))
    assert len(lines) == len(set(lines)) == 5 and set(lines) <= set(TEXT.splitlines())
    assert all(SHORTEST <= len(line) <= LONGEST for line in lines)
    assert excerpts([spec], fingerprint(spec)) == lines


def test_a_text_that_is_not_the_checkpoints_own_is_not_shown(spec, tmp_path):
    """A checkpoint from elsewhere could name any file of this machine."""
    (tmp_path / "secret.txt").write_text("the key of the house\n")
    assert excerpts([str(tmp_path / "secret.txt")], fingerprint(spec)) == []
    assert excerpts([spec], None) == []


@pytest.mark.parametrize("absent", ["gone.txt", ".", "*.txt"])
def test_a_corpus_that_is_not_a_file_here_has_none(spec, tmp_path, absent):
    assert excerpts([str(tmp_path / absent)], fingerprint(spec)) == []


def test_nothing_is_downloaded(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(tmp_path))
    monkeypatch.setattr(library, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(library, "_download", lambda *_: pytest.fail("a download"))
    assert excerpts(["shakespeare"], fingerprint(spec)) == []


def test_a_corpus_that_is_built_in_or_generated_can_be_read():
    spec = "code-patterns-python:3"
    lines = excerpts([spec], fingerprint(spec))
    text = "".join(open_corpus([spec]).texts())
    assert lines and all(line in text for line in lines)


def test_an_error_of_reading_is_no_error_here(spec, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    assert excerpts([spec, str(tmp_path / "bad.txt")], "0" * 64) == []
