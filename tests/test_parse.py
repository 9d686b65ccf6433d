"""JSON and TOML: what cannot be used is one line with the name of the file and the place."""

import io
import os
import re
import sys
from pathlib import Path

import pytest
from constants import ROOT

from mlx_gpt import parse
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import parse_json, parse_toml, read_json, read_text, read_toml

BAD_JSON = [
    ("[" * 100_000, "line 1 is nested more than 64 deep"),
    ('{"a":\n' * 100_000, "line 65 is nested more than 64 deep"),
    ('"' + "x[" * 100 + '"' + "[" * 100, "line 1 is nested"),
    ("[" * 65 + "]" * 65, "line 1 is nested"),
    ('{"a": [1, ' + "1" * 5000 + "]}", "5000 digits"),
    ('{"a": [1, ' + "1" * 50 + "]}", "an integer of more than 64 bits at 'a.1'"),
    ('{"a": {"b": NaN}}', "the number nan at 'a.b'"),
    ('{"a": -Infinity}', "the number -inf at 'a'"),
    ("[1e999]", "the number inf at '0'"),
    (r'{"a": "\ud800"}', "a lone surrogate at 'a'"),
    (r'{"\udfff": 1}', "a lone surrogate"),
    (b'{"a": "\xff"}', "byte 7 is 0xff, not UTF-8"),
    ('{"a": 1, "a": 2}', "'a' occurs twice"),
    ('{"a": ', "line 1 column 7"),
    ('"' + '\\"' * 100_000, "Unterminated string"),
]
BAD_TOML = [
    ("a = " + "[" * 100_000, "line 1 is nested more than 64 deep"),
    (".".join("a" * 3000) + " = 1", "nested more than 64 deep"),
    ("[m]\na = nan", "the number nan at 'm.a'"),
    ("a = -inf", "the number -inf at 'a'"),
    ("a = " + "1" * 5000, "5000 digits"),
    ("a = " + "1" * 50, "an integer of more than 64 bits at 'a'"),
    (r'a = "\ud800"', "line 1, column"),
    (b"a = '\xff'", "byte 5 is 0xff, not UTF-8"),
    ("a = ", "Invalid value"),
]


BAD = [(parse_json, *row) for row in BAD_JSON] + [(parse_toml, *row) for row in BAD_TOML]


@pytest.mark.parametrize("parsed, text, words", BAD)
def test_what_cannot_be_used_is_named_with_its_place(parsed, text, words):
    with pytest.raises(BadFile) as error:
        parsed(text, "some.file")
    message = str(error.value)
    assert message.startswith("some.file: ") and words in message and len(message) < 200 and "\n" not in message


def test_what_is_valid_is_read():
    text = r'["\ud83d\ude00", "\\ud800", 1e300, 18446744073709551615, null]'
    assert parse_json(text, "f") == ["\U0001f600", r"\ud800", 1e300, 2**64 - 1, None]
    assert parse_json("[" * 64 + "]" * 64, "f") and parse_json('["' + "[" * 1000 + '"]', "f") == ["[" * 1000]
    assert parse_toml('a.b = "[[["\n[c]\nd = [1, 2.5]', "f") == {"a": {"b": "[[["}, "c": {"d": [1, 2.5]}}


@pytest.mark.parametrize("read", [read_json, read_toml])
def test_only_regular_files_of_a_limited_size_are_read(tmp_path, read, monkeypatch):
    (tmp_path / "zeros").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "zeros", tmp_path / "pipe"):
        with pytest.raises(BadFile, match="a folder, a device or another special file"):
            read(path)
    with pytest.raises(UserError, match="absent: no such file"):
        read(tmp_path / "absent")
    monkeypatch.setattr(parse, "MAX_BYTES", 10)
    (tmp_path / "large").write_text(" " * 11)
    with pytest.raises(BadFile, match="large: has more than 10 bytes"):
        read(tmp_path / "large")


def test_a_text_is_read_from_a_file_or_stdin_within_a_limit(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("é")
    assert read_text(tmp_path / "text") == "é"
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with pytest.raises(BadFile, match="zeros: .*special file"):
        read_text(tmp_path / "zeros")
    for data, words in ((b"a\xff", "stdin: .*byte 1 is 0xff, not UTF-8"), (b"x" * 11, "stdin: has more than 10 bytes")):
        monkeypatch.setattr(parse, "MAX_BYTES", 10)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(BadFile, match=words):
            read_text(Path("-"))


def test_no_module_reads_json_or_toml_files_past_this_one():
    """Messages between processes, JSON Lines of text and of metrics, and what rustc prints are parsed elsewhere."""
    found = set()
    for path in (ROOT / "mlx_gpt").rglob("*.py"):
        if re.search(r"\b(json|tomllib)\.loads?\(", path.read_text()):
            found.add(path.relative_to(ROOT / "mlx_gpt").as_posix())
    others = {f"bench/{name}.py" for name in ("case", "race", "text", "worker")}
    others |= {"rl/launcher.py", "rl/sandbox.py", "code/rust.py", "run/handout.py", "watch/tail.py"}
    assert found <= {"parse.py", "data/textfiles.py"} | others
