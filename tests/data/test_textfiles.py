"""Files of text that are torn, damaged, endless or far larger than they seem: one line that names the file."""

import gzip
import json
import os
import tracemalloc

import pytest
from commands import mlxgpt

from mlx_gpt.data import corpus as corpus_module
from mlx_gpt.data import encoding, textfiles
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import BadFile

LINES = b"".join(json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(3000))


def flipped(data: bytes) -> bytes:
    return data[:50] + bytes(byte ^ 0xFF for byte in data[50:60]) + data[60:]


@pytest.mark.parametrize("name", ["torn.txt.gz", "torn.jsonl.gz"])
@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: d[: len(d) // 2], flipped, lambda d: b"plain" + d])
def test_a_damaged_gzip_file_is_named_in_one_line(tmp_path, name, damage):
    (tmp_path / name).write_bytes(damage(gzip.compress(LINES)))
    done = mlxgpt("corpus", "stats", name, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and f"{name}: not a complete gzip file" in line


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_gzip_file_that_expands_too_far_is_refused_before_it_fills_the_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(textfiles, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(corpus_module, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(textfiles, "MAX_JSON_LINE", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(b" " * (30 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match=f"{name}: (expands to more than|line 1 has more than)"):
            list(open_corpus([str(tmp_path / name)]).texts())
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_gzip_file_within_the_limit_is_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 100_000))
    assert open_corpus([str(tmp_path / "a.txt.gz")]).documents == ["x" * 100_000]


def test_the_size_of_a_gzip_file_is_that_of_its_text(tmp_path, monkeypatch):
    """The size decides whether the ids of the corpus are stored in a file. The last four bytes do not hold it."""
    parts = b"".join(gzip.compress(b"ab\n" * 10_000) for _ in range(3))
    (tmp_path / "a.txt.gz").write_bytes(parts)
    corpus = open_corpus([str(tmp_path / "a.txt.gz")])
    assert corpus.num_bytes == 90_000 > 10 * len(parts)
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 90_000)
    monkeypatch.setattr(encoding, "cache_dir", lambda: tmp_path / "cache")
    encoding.encode(corpus, CharTokenizer("\nab"), print)
    assert list(tmp_path.glob("cache/tokens/*.tokens"))


def test_a_long_line_of_json_lines_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_JSON_LINE", 50)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 60}))
    with pytest.raises(BadFile, match="a.jsonl: line 2 has more than 50 bytes"):
        list(open_corpus([str(tmp_path / "a.jsonl")]).texts())


def test_special_files_are_refused_and_not_read(tmp_path):
    (tmp_path / "zeros.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("zeros.txt", "pipe.txt"):
        with pytest.raises(BadFile, match=f"{name}: is a device or another special file"):
            open_corpus([str(tmp_path / name)])
        with pytest.raises(BadFile, match=f"{name}: is not a regular file"):
            list(textfiles.read_documents(tmp_path / name, 100))[0].__next__()
