"""Fixtures: golden vectors, the real corpus, tiny configs. Tests use the CPU, no network, and write under tmp_path."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mlx_gpt.backend import mx
from mlx_gpt.config import resolve

mx.set_default_device(mx.cpu)

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MLXGPT_TEST_DATA", ROOT.parent / "shared"))
TINY_SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64}
TINY = {f"model.{k}": v for k, v in TINY_SHAPE.items()}


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Golden data of the public system: tiny.npz, tiny.json, *.bin."""
    folder = SHARED / "vectors"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors in {folder}; set MLXGPT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def golden(vectors):
    return np.load(vectors / "tiny.npz"), json.loads((vectors / "tiny.json").read_text())


@pytest.fixture
def shakespeare(monkeypatch) -> str:
    """The name of the real corpus, found without a network."""
    folder = Path(os.environ.get("MLXGPT_CORPUS_DIR", SHARED / "corpus"))
    if not (folder / "shakespeare.txt").is_file():
        pytest.skip(f"no shakespeare.txt in {folder}; set MLXGPT_CORPUS_DIR")
    monkeypatch.setenv("MLXGPT_CORPUS_DIR", str(folder))
    return "shakespeare"


@pytest.fixture
def tiny_config():
    """A model small enough to train in a test."""
    return resolve(overrides=TINY | {"train.batch_size": 4, "train.iters": 20, "train.eval_every": 5})
