"""Fixtures: golden vectors, the real corpus, tiny configs. Tests use the CPU, no network, and write under tmp_path."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mlx_gpt.backend import mx
from mlx_gpt.config import resolve

mx.set_default_device(mx.cpu)
os.environ["MLXGPT_TUNED"] = "off"  # what was tuned on this machine is its own

ROOT = Path(__file__).parent.parent
TINY_SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64}
TINY = {f"model.{k}": v for k, v in TINY_SHAPE.items()}


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


@pytest.fixture
def tiny_config():
    """A model small enough to train in a test."""
    return resolve(overrides=TINY | {"train.batch_size": 4, "train.iters": 20, "train.eval_every": 5})
