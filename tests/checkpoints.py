"""Makes and compares small checkpoints of random tensors."""

import dataclasses

import numpy as np

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.model.gpt import shapes_of

MODEL = ModelConfig(n_embd=8, n_head=2, n_layer=1, block_size=4)


def checkpoint(seed=0, moments=True, **changes) -> Checkpoint:
    """Returns a checkpoint of MODEL with 5 token ids. `changes` replaces fields of its header.

    If `moments` is true, it holds the optimizer's first and second moments, "m.NAME" and "v.NAME" for each weight.
    """
    draw = np.random.default_rng(seed)

    def tensors():
        return {k: draw.normal(size=s).astype(np.float32) for k, s in shapes_of(MODEL, 5).items()}

    header = Header(
        config=Config(model=MODEL),
        vocab_size=5,
        step=7,
        num_updates=6,
        best_loss=2.5,
        corpus="c" * 64,
        tokenizer={"kind": "char", "characters": "abc"},
    )
    optimizer = {f"{part}.{k}": t for part in "mv" for k, t in tensors().items()} if moments else {}
    return Checkpoint(header=dataclasses.replace(header, **changes), weights=tensors(), optimizer=optimizer)


def assert_same(a: Checkpoint, b: Checkpoint):
    """Asserts that headers, tensors and their dtypes are equal."""
    assert a.header == b.header
    for ours, theirs in ((a.weights, b.weights), (a.optimizer, b.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(t, theirs[k]) and t.dtype == theirs[k].dtype for k, t in ours.items())
