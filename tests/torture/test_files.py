"""Files with random changes, and reads that fail: a file is read, or refused in one line of our own, within bounds."""

import ast
import builtins
import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from checkpoints import MODEL
from constants import ROOT
from faults import END, SHORT, Disk
from hostile import Target, attack, require_own
from mutations import mutated, mutated_json
from targets import TARGETS, TEXT

from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import DataConfig
from mlx_gpt.data import corpus as corpus_module
from mlx_gpt.data import encoding, tokenfile
from mlx_gpt.data.corpus import Corpus, Source
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import UserError
from mlx_gpt.run import tuned

# Functions that open files.
READS = {"open", "read_bytes", "read_text", "read_json", "read_toml", "read_object", "reading", "open_regular"}
# Modules that call them and need no row in TARGETS.
OTHERS = {
    "code/history": "appends; the lines are read by watch/metrics",
    "cli/access": "one line, the API key of a server",
    "cli/generate": "standard input",
    "cli/main": "the null device",
    "cli/watch": "opens a browser",
    "data/corpus": "files of the Python installation",
    "data/library": "manifests of mlxgpt, and texts of a known SHA-256",
    "device/jit": "/proc",
    "distributed/ranks": "a file of mlx.launch",
    "files": "locks, and files that are written",
    "parse": "reads for other modules",
    "rl/launcher": "/proc, and files of a sandbox",
    "rl/rollout": "samples, of which lines that are not JSON are removed; other files through checkpoint/container",
    "run/tuned": "a test of its own, below",
    "watch/sinks/wandb": "the id of a run",
    "web/pages": "files of mlxgpt",
}
PACKAGE = ROOT / "mlx_gpt"


def name_of(path: str | Path) -> str:
    """The name of a module of mlx_gpt, such as "data/corpus"."""
    return Path(path).relative_to(PACKAGE).with_suffix("").as_posix()


def reads_files(path: Path) -> bool:
    """Whether a module calls one of READS."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(ast.unparse(call.func).rpartition(".")[2] in READS for call in calls)


def reader() -> str | None:
    """The innermost module of mlx_gpt on the stack besides parse."""
    frame = sys._getframe(2)
    while frame and (PACKAGE not in (path := Path(frame.f_code.co_filename)).parents or path.name == "parse.py"):
        frame = frame.f_back
    return frame and name_of(frame.f_code.co_filename)


@pytest.mark.slow
def test_every_module_that_reads_files_has_a_row_in_the_table(tmp_path):
    seen, readers = set(), {name_of(path) for path in PACKAGE.rglob("*.py") if reads_files(path)}

    def recorded(plain):
        return lambda *arguments, **options: seen.add(reader()) or plain(*arguments, **options)

    for number, make in enumerate(TARGETS.values()):
        (tmp_path / str(number)).mkdir()
        target = make(tmp_path / str(number))
        with contextlib.ExitStack() as stack:
            for module in (builtins, io, os):
                stack.enter_context(mock.patch.object(module, "open", recorded(module.open)))
            target.read()
    assert OTHERS.keys() <= readers and readers - seen <= OTHERS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused_in_one_line(tmp_path, name, attempts, draw):
    attack(TARGETS[name](tmp_path), attempts(15, 1000), draw)


@pytest.mark.parametrize("name", TARGETS)
def test_a_read_that_fails_is_an_error_in_one_line(tmp_path, name, attempts, draw):
    """SHORT is no error: the read is continued."""
    target = TARGETS[name](tmp_path)
    good = target.path.read_bytes()
    with Disk(tmp_path, reads=True) as disk:
        target.read()
    places = [(at, fault) for at in range(len(disk.calls)) for fault in (errno.EIO, SHORT, END)]
    for at, fault in draw.sample(places, attempts(3, len(places), len(places))):
        target.path.write_bytes(good)
        try:
            with Disk(tmp_path, at, fault, reads=True):
                target.read()
        except UserError as error:
            assert fault != SHORT, str(error)
            require_own(error, tmp_path)


def of_tuned(folder, monkeypatch):
    monkeypatch.setenv("MLXGPT_TUNED", "on")
    monkeypatch.setattr(tuned, "cache_dir", lambda: folder)
    path = tuned.keep(MODEL, {"settings": {"speed.lanes": 2, "speed.remat": True}, "rows": [{"seconds": 1.5}]})
    return Target(path, lambda: tuned.settings_for(MODEL), mutated_json)


def test_a_changed_file_of_tuned_settings_is_ignored(tmp_path, attempts, draw, monkeypatch):
    target = of_tuned(tmp_path, monkeypatch)
    good = target.path.read_bytes()
    for _ in range(attempts(15, 1000)):
        target.path.write_bytes(target.mutate(good, draw))
        resolve(overrides=target.read())


class Stopping(CharTokenizer):
    """Is interrupted after 12 pieces of text."""

    encoded = 0

    def encode(self, *rest):
        self.encoded += 1
        if self.encoded > 12:
            raise KeyboardInterrupt
        return super().encode(*rest)


@pytest.mark.parametrize("suffix", [".tokens", ".part", ".json"])
def test_a_changed_token_file_never_gives_other_ids(tmp_path, suffix, attempts, draw, monkeypatch):
    """.part and .json are those of an interrupted encoding, which goes on or starts again."""
    monkeypatch.setattr(encoding, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(tokenfile, "SAVE_TOKENS", 50)
    monkeypatch.setattr(tokenfile, "BLOCK", 64)
    monkeypatch.setattr(corpus_module, "PIECE", 40)
    corpus = Corpus("c", (Source("c", 1.0, 99, lambda: [[TEXT[i : i + 40] for i in range(0, 800, 40)], [TEXT]]),))
    tokenizer = encoding.make_tokenizer(corpus, DataConfig(), print)
    plain = encoding.encode(corpus, tokenizer, print)
    monkeypatch.setattr(encoding, "MAPPED_BYTES", 0)
    begin = Stopping if suffix != ".tokens" else CharTokenizer
    try:
        encoding.encode(corpus, begin(tokenizer.characters), print)
    except KeyboardInterrupt:
        assert suffix != ".tokens"
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    (path,) = (path for path in before if path.suffix == suffix)
    for _ in range(attempts(10, 400)):
        for old in (tmp_path / "tokens").iterdir():
            old.unlink()
        for name, data in before.items():
            name.write_bytes(data)
        path.write_bytes(mutated(before[path], draw))
        told = []
        found = encoding.encode(corpus, tokenizer, told.append)
        assert np.array_equal(found.ids.host, plain.ids.host) and np.array_equal(found.lengths, plain.lengths)
        assert all("\n" not in line for line in told)
