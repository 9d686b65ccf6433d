"""Checkpoints that ask for more than this machine has."""

import dataclasses

import pytest
from checkpoints import MODEL, checkpoint
from commands import mlxgpt

from mlx_gpt import api
from mlx_gpt.checkpoint import store
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import OutOfRoom


@pytest.fixture
def endless(tmp_path):
    """A checkpoint of a few kilobytes with a context of 2^20 tokens."""
    model = dataclasses.replace(MODEL, positions="rotary", block_size=1 << 20)
    made = checkpoint(moments=False, config=Config(model=model))
    del made.weights["wpe.weight"]
    store.save(tmp_path / "c.safetensors", made)
    return tmp_path / "c.safetensors"


def test_a_context_that_does_not_fit_is_refused_before_it_is_computed(endless):
    done = mlxgpt("serve", endless, "--port", "0", cwd=endless.parent)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 6 and "model.block_size=1048576" in line and "MLX may use only" in line
    with pytest.raises(OutOfRoom, match="model.block_size=1048576"):
        api.evaluate(api.load(endless), "pydocs")


def test_a_long_context_can_be_loaded_and_generates_short_texts(endless):
    assert len("".join(api.generate(api.load(endless), "abc", max_tokens=4, temperature=0))) <= 4
