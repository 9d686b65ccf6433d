"""Fixtures: golden data, a real corpus, a tiny config, and models with random weights.

The tests run on the CPU, or on the device that MLXGPT_TEST_DEVICE names. They use no network, and write files only
under pytest's temporary folders.
"""

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from constants import ROOT, TINY
from devices import use_device
from toys import TOYS

from mlx_gpt.api import Run
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.presets import resolve
from mlx_gpt.data.bpe import ByteBPETokenizer
from mlx_gpt.data.tokenizer import CharTokenizer, Tokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT

os.environ["MLXGPT_TUNED"] = "off"  # results must not depend on settings that were tuned on this machine


def pytest_configure(config):
    use_device()


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of golden data, made with the public randyGPT system. Its README.md describes the files."""
    return ROOT / "tests/golden"


@pytest.fixture(scope="session")
def golden(vectors):
    """The arrays of tiny.npz, and the shape and header in tiny.json."""
    return np.load(vectors / "tiny.npz"), json.loads((vectors / "tiny.json").read_text())


@pytest.fixture
def shakespeare() -> str:
    """The name of the corpus tiny Shakespeare. Skips the test if its text is not in MLXGPT_CORPUS_DIR."""
    if not (Path(os.environ.get("MLXGPT_CORPUS_DIR", "")) / "shakespeare.txt").is_file():
        pytest.skip("needs shakespeare.txt in MLXGPT_CORPUS_DIR")
    return "shakespeare"


@pytest.fixture
def toys(monkeypatch):
    """Adds the toys of toys.py to the tables of implementations of the network."""
    for table, name, toy in TOYS.values():
        monkeypatch.setitem(table, name, toy)


@pytest.fixture(scope="session")
def tiny_config():
    """The settings of a run that is small enough for a test: 20 updates of a model of width 32."""
    return resolve(overrides=TINY | {"train.batch_size": 4, "train.iters": 20, "train.eval_every": 5})


@pytest.fixture(scope="session")
def small_run() -> Run:
    """A model with random weights over newline, space and the letters a to h, with a context of 12 tokens."""
    return random_run(CharTokenizer("\n abcdefgh"), 12)


@pytest.fixture(scope="session")
def ascii_run() -> Run:
    """Like small_run, over all printable ASCII characters and with a context of 64 tokens."""
    return random_run(CharTokenizer("".join(sorted(string.printable))), 64)


@pytest.fixture(scope="session")
def unicode_run() -> Run:
    """Like ascii_run, over letters, a combining accent, Hebrew, and characters outside the Basic Multilingual Plane."""
    return random_run(CharTokenizer(" abe\u0301\u05d0\u05e9\U0001d11e\U0001f600"), 64)


@pytest.fixture(scope="session")
def bytes_run() -> Run:
    """Like ascii_run, over bytes and the first two and three bytes of some characters outside that plane."""
    return random_run(ByteBPETokenizer.train(["\U0001f600\U0001f680" * 9], 260, set()), 64)


def random_run(tokenizer: Tokenizer, block_size: int) -> Run:
    """A model with random weights. They are scaled up, so that greedy text does not repeat one character."""
    config = resolve(
        overrides={"model.n_embd": 24, "model.n_head": 3, "model.n_layer": 2, "model.block_size": block_size}
    )
    model = GPT(config.model, tokenizer.vocab_size, seed=5)
    model.set_weights({k: w * 12 for k, w in model.weights().items()})
    model.lm_head.weight[tokenizer.eos_id] = 0  # so that greedy text does not end early
    mx.eval(model.weights())
    header = Header(
        config=config, vocab_size=tokenizer.vocab_size, step=1, num_updates=1, tokenizer=tokenizer.to_dict(), corpus="x"
    )
    return Run(model=model, tokenizer=tokenizer, header=header)
