"""Resuming: a randyGPT file continues as randyGPT continues it."""

import dataclasses

import numpy as np
import pytest
from constants import TINY, TINY_SHAPE
from references import randygpt_gradients, randygpt_training

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.train.reports import StepReport

# 65 distinct characters, so that the vocabulary has the 67 ids of the golden files. The training split of the text is
# their 65 tokens, which is a single window, so every row of every batch is this window.
LETTERS = "".join(map(chr, range(48, 48 + 65)))
SHUFFLED = "".join(np.random.default_rng(0).permutation(list(LETTERS)))
TEXT = SHUFFLED + LETTERS[:8]
WINDOW = CharTokenizer(LETTERS).encode(SHUFFLED).astype(int)


def tensors(checkpoint):
    """The weights and moments of a checkpoint in float64, by name without the suffix ".weight"."""
    w = {k.removesuffix(".weight"): t.astype(np.float64) for k, t in checkpoint.weights.items()}
    parts = {k.removesuffix(".weight"): t.astype(np.float64) for k, t in checkpoint.optimizer.items()}
    m, v = ({k: parts[f"{part}.{k}"] for k in w} for part in "mv")
    return w, m, v


def resumed(folder, source, settings, **more):
    """Resumes `source` on TEXT without dropout. Returns the losses, the last checkpoint and the notes."""
    (folder / "text.txt").write_text(TEXT)
    notes, small = [], TINY | {"model.dropout": 0.0, "train.eval_windows": 2, "train.sample_every": 0}
    session = mlx_gpt.train(
        corpus=folder / "text.txt", resume=source, settings=small | settings, out=folder / "run", note=notes.append, **more
    )
    losses = [report.loss for report in session if isinstance(report, StepReport)]
    return losses, store.load(folder / "run/checkpoint.safetensors"), notes


def assert_close(checkpoint, w, m, v, atol):
    """Asserts that a checkpoint has these weights, within `atol`, and these moments, within 1e-5 of their largest."""
    for ours, theirs, bound in zip(tensors(checkpoint), (w, m, v), (atol, None, None), strict=True):
        for name, tensor in theirs.items():
            print(name, np.abs(ours[name]-tensor).max(), bound, np.abs(tensor).max())
            np.testing.assert_allclose(
                ours[name], tensor, rtol=0, atol=bound or 1e-5 * np.abs(tensor).max(), err_msg=name
            )


def test_the_reference_gradients_are_the_slopes_of_its_loss(vectors):
    w, *_ = tensors(rgpt.read(vectors / "tiny.rgpt0003.bin", TINY_SHAPE))
    _, grads = randygpt_gradients(w, WINDOW[:-1], WINDOW[1:], 4)
    draw = np.random.default_rng(1)
    for name in w:
        direction = draw.normal(size=w[name].shape)
        ahead, behind = (
            randygpt_gradients(w | {name: w[name] + sign * 1e-5 * direction}, WINDOW[:-1], WINDOW[1:], 4)[0]
            for sign in (1, -1)
        )
        np.testing.assert_allclose((ahead - behind) / 2e-5, (grads[name] * direction).sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("format", ["rgpt0001", "rgpt0003"])
def test_a_randygpt_run_goes_on_in_its_warm_up(vectors, tmp_path, format):
    """With the rate, betas, clipping, schedule and moments of randyGPT, none of which the request names."""
    source = vectors / f"tiny.{format}.bin"
    file = rgpt.read(source, TINY_SHAPE)
    w, m, v = tensors(file)
    rule = {"num_updates": file.header.num_updates, "peak": 3e-5, "lowest": 3e-6, "decay": 0.01}
    expected, _ = randygpt_training(w, m, v, WINDOW, n_head=4, first=6, iters=12, **rule)
    losses, last, notes = resumed(tmp_path, source, {"train.iters": 12})
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    assert_close(last, w, m, v, atol=2e-8)
    assert last.header.config.train.batch_size == 64
    (told,) = [line for line in notes if "recipe" in line]
    for words in (str(source), "recipe randygpt ", "3e-05 to 3e-06", "batch 64", "0.9 and 0.999", "decay 0.01", "0.9.5"):
        assert words in told


def test_a_randygpt_run_goes_on_in_its_cosine_decayed_and_clamped(vectors, tmp_path):
    """At a rate that makes the decay visible, from a file with gradients above 1."""
    file = rgpt.read(vectors / "tiny.rgpt0003.bin", TINY_SHAPE)
    weights = file.weights | {"lm_head.weight": file.weights["lm_head.weight"] * 40}
    header = dataclasses.replace(file.header, step=150, num_updates=150)
    file = dataclasses.replace(file, header=header, weights=weights)
    rgpt.write(tmp_path / "late.bin", file, "rgpt0003")
    w, m, v = tensors(file)
    rule = {"num_updates": 150, "peak": 0.01, "lowest": 0.001, "decay": 0.01}
    expected, largest = randygpt_training(w, m, v, WINDOW, n_head=4, first=150, iters=160, **rule)
    assert largest > 1
    rates = {"optimizer.learning_rate": 0.01, "optimizer.min_learning_rate": 0.001}
    losses, last, _ = resumed(tmp_path, tmp_path / "late.bin", rates | {"train.iters": 160})
    print(largest, losses, expected)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(last, w, m, v, atol=1e-6)
