"""Fixtures: golden vectors, the real corpus, tiny configs. Tests use the CPU, no network, and write under tmp_path."""

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from constants import ROOT, TINY

from mlx_gpt.api import Run
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.presets import resolve
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT

mx.set_default_device(mx.cpu)
os.environ["MLXGPT_TUNED"] = "off"  # what was tuned on this machine is its own


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Golden data of the public system."""
    return ROOT / "tests/golden"


@pytest.fixture(scope="session")
def golden(vectors):
    return np.load(vectors / "tiny.npz"), json.loads((vectors / "tiny.json").read_text())


@pytest.fixture
def shakespeare() -> str:
    """The name of the real corpus, found without a network."""
    if not (Path(os.environ.get("MLXGPT_CORPUS_DIR", "")) / "shakespeare.txt").is_file():
        pytest.skip("needs shakespeare.txt in MLXGPT_CORPUS_DIR")
    return "shakespeare"


@pytest.fixture(scope="session")
def tiny_config():
    """A model small enough to train in a test."""
    return resolve(overrides=TINY | {"train.batch_size": 4, "train.iters": 20, "train.eval_every": 5})


@pytest.fixture(scope="session")
def small_run() -> Run:
    """Random weights, large enough that the text is not one letter."""
    config = resolve(overrides={"model.n_embd": 24, "model.n_head": 3, "model.n_layer": 2, "model.block_size": 12})
    tokenizer = CharTokenizer("\n abcdefgh")
    model = GPT(config.model, tokenizer.vocab_size, seed=5)
    model.set_weights({k: w * 12 for k, w in model.weights().items()})
    model.lm_head.weight[tokenizer.eos_id] = 0  # so that the likeliest token is never the end
    mx.eval(model.weights())
    header = Header(config=config, vocab_size=tokenizer.vocab_size, step=1, num_updates=1)
    return Run(model=model, tokenizer=tokenizer, header=header)


@pytest.fixture(scope="session")
def ascii_run() -> Run:
    """Random weights over all of ASCII, large enough that the text is not one letter."""
    config = resolve(overrides={"model.n_embd": 24, "model.n_head": 3, "model.n_layer": 2, "model.block_size": 64})
    tokenizer = CharTokenizer("".join(sorted(string.printable)))
    model = GPT(config.model, tokenizer.vocab_size, seed=5)
    model.set_weights({k: w * 12 for k, w in model.weights().items()})
    model.lm_head.weight[tokenizer.eos_id] = 0  # so that the likeliest token is never the end
    mx.eval(model.weights())
    header = Header(
        config=config, vocab_size=tokenizer.vocab_size, step=1, num_updates=1, tokenizer=tokenizer.to_dict(), corpus="x"
    )
    return Run(model=model, tokenizer=tokenizer, header=header)
