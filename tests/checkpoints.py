"""Makes and compares small checkpoints of random tensors."""

import dataclasses

import numpy as np

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.model.gpt import GPT, shapes_of

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


def far_from_start(model: ModelConfig, tokenizer, **changes) -> Checkpoint:
    """Returns a checkpoint of a network with a tokenizer. `changes` replaces fields of its header.

    The weights are random, and so large that attention and norms change the output.
    """
    draw = np.random.default_rng(3)
    weights = {
        name: (np.array(w) * 6 if w.ndim == 2 else draw.uniform(0.5, 2, w.shape)).astype(np.float32)
        for name, w in GPT(model, tokenizer.vocab_size).weights().items()
    }
    header = Header(
        config=Config(model=model),
        vocab_size=tokenizer.vocab_size,
        step=7,
        num_updates=7,
        best_loss=2.5,
        best_step=5,
        tokens=1234,
        tokenizer=tokenizer.to_dict(),
        corpus="0" * 64,
    )
    return Checkpoint(header=dataclasses.replace(header, **changes), weights=weights, optimizer={})


def small_tokenizer(kind: str, text: str):
    """Trains a tokenizer of one of the three kinds with few ids."""
    train = {
        "char": lambda: CharTokenizer.train([text]),
        "bpe": lambda: BPETokenizer.train([text], 300, set(text)),
        "byte-bpe": lambda: ByteBPETokenizer.train([text], 400, set(text)),
    }
    return train[kind]()


def assert_same(a: Checkpoint, b: Checkpoint):
    """Asserts that headers, tensors and their dtypes are equal."""
    assert a.header == b.header
    for ours, theirs in ((a.weights, b.weights), (a.optimizer, b.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(t, theirs[k]) and t.dtype == theirs[k].dtype for k, t in ours.items())
