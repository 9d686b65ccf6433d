"""Resuming: a randyGPT file continues as randyGPT continues it."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from constants import TINY, TINY_SHAPE
from references import randygpt_gradients, randygpt_training

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.config.presets import resolve
from mlx_gpt.data.bpe import tokenizer_json
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import ResumeRefused, UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.run.request import Request, ignore
from mlx_gpt.run.start import begin
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
        corpus=folder / "text.txt",
        resume=source,
        settings=small | settings,
        out=folder / "run",
        note=notes.append,
        **more,
    )
    losses = [report.loss for report in session if isinstance(report, StepReport)]
    return losses, store.load(folder / "run/checkpoint.safetensors"), notes


def assert_close(checkpoint, w, m, v, atol):
    """Asserts that a checkpoint has these weights, within `atol`, and these moments, within 1e-4 of their largest."""
    found, *moments = tensors(checkpoint)
    for ours, theirs in zip((found, *moments), (w, m, v), strict=True):
        for name, tensor in theirs.items():
            bound = atol if ours is found else 1e-4 * np.abs(tensor).max()
            np.testing.assert_allclose(ours[name], tensor, rtol=0, atol=bound, err_msg=name)


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
    np.testing.assert_allclose(losses, expected, rtol=5e-6)
    assert_close(last, w, m, v, atol=4e-7)
    assert last.header.config.train.batch_size == 64
    (told,) = [line for line in notes if "recipe" in line]
    for words in (
        str(source),
        "recipe randygpt ",
        "3e-05 to 3e-06",
        "batch 64",
        "0.9 and 0.999",
        "decay 0.01",
        "0.9.5",
    ):
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
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(last, w, m, v, atol=1e-5)


@pytest.fixture(scope="module")
def sources(vectors, tmp_path_factory):
    """Checkpoints without settings: an RGPT file, a state_dict, a folder with its tokenizer, a converted file."""
    folder = tmp_path_factory.mktemp("sources")
    file, tokenizer = vectors / "tiny.rgpt0002.bin", CharTokenizer(LETTERS)
    checkpoint = rgpt.read(file, TINY_SHAPE)
    safetensors.numpy.save_file(checkpoint.weights, folder / "state.safetensors")
    (folder / "exported").mkdir()
    safetensors.numpy.save_file(checkpoint.weights, folder / "exported/model.safetensors")
    facts = {"model_type": "randygpt", "vocab_size": 67, **TINY_SHAPE}
    (folder / "exported/config.json").write_text(json.dumps(facts))
    (folder / "exported/tokenizer.json").write_text(tokenizer_json(tokenizer))
    mlx_gpt.convert(file, folder / "converted.safetensors", **TINY_SHAPE)
    return [file, *(folder / name for name in ("state.safetensors", "exported", "converted.safetensors"))]


def test_every_checkpoint_without_settings_continues_with_randygpts(sources, tmp_path):
    """Unless an option or a recipe says otherwise."""
    recipe = resolve(None, "randygpt", TINY)
    for i, source in enumerate(sources):
        (tmp_path / str(i)).mkdir()
        settings = {"train.iters": 60, "train.batch_size": 2}
        start = begin_with(tmp_path / str(i), source, settings)
        found = start.header.config
        assert found.optimizer == recipe.optimizer and found.train.batch_size == 2 and found.train.patience == 20
        assert start.tokenizer.vocab_size == 67
        later = begin_with(tmp_path / str(i), source, {}, recipe="randygpt-0.9.5").header.config
        assert later.optimizer == resolve(None, "randygpt-0.9.5", TINY).optimizer != recipe.optimizer
        own = begin_with(tmp_path / str(i), source, {"optimizer.learning_rate": 0.5}, recipe="default").header.config
        assert (own.optimizer.name, own.optimizer.learning_rate, own.optimizer.beta2) == ("adamw", 0.5, 0.99)


def begin_with(folder, source, settings, **more):
    (folder / "text.txt").write_text(TEXT)
    corpus = {"data.corpus": (str(folder / "text.txt"),)}
    return begin(Request(resume=str(source), settings=TINY | corpus | settings, **more), ignore)


def test_a_checkpoint_that_names_no_text_needs_one(sources):
    for source, recipe in itertools.product(sources, (None, "default")):
        with pytest.raises(UserError, match=f"{source}.*--corpus") as error:
            mlx_gpt.train(resume=source, recipe=recipe, settings=TINY)
        assert "\n" not in str(error.value)


def test_a_converted_file_has_randygpts_settings_and_its_run_continues(vectors, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    path, told = tmp_path / "model.safetensors", []
    source = vectors / "tiny.rgpt0003.bin"
    mlx_gpt.convert(source, path, **TINY_SHAPE, corpus=tmp_path / "text.txt", note=told.append)
    assert store.load(path).header.config.optimizer == resolve(None, "randygpt").optimizer and "0.9.5" in told[0]
    runs = []
    for name, start in (("a", source), ("b", path)):
        (tmp_path / name).mkdir()
        runs.append(resumed(tmp_path / name, start, {"train.iters": 8})[1])
    assert all(np.array_equal(tensor, runs[1].weights[name]) for name, tensor in runs[0].weights.items())


def test_another_division_of_the_text_into_sources_is_refused(tmp_path):
    """It has another validation split. A checkpoint of an older version does not know its division."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} or not to be\n" * 30)
    a, b, c = (str(tmp_path / f"{name}.txt") for name in "abc")
    (tmp_path / "both").mkdir()
    for name in "bc":
        shutil.copy(tmp_path / f"{name}.txt", tmp_path / "both")
    settings = TINY | {"train.batch_size": 2, "train.iters": 2, "train.eval_windows": 2, "train.sample_every": 0}
    list(mlx_gpt.train(corpus=[a, b, c], settings=settings, out=tmp_path / "run"))
    with pytest.raises(ResumeRefused, match=r"of 1 and 2 documents, the checkpoint has 1 and 1 and 1; .*--corpus"):
        mlx_gpt.train(corpus=[a, tmp_path / "both"], resume=tmp_path / "run")
    mlx_gpt.train(corpus=[a, b, c], resume=tmp_path / "run").close()
    path = tmp_path / "run/checkpoint.safetensors"
    known = store.load(path)
    store.save(path, dataclasses.replace(known, header=dataclasses.replace(known.header, division=None)))
    (tmp_path / "run/best.safetensors").unlink()
    with contextlib.closing(mlx_gpt.train(corpus=[a, tmp_path / "both"], resume=tmp_path / "run")) as session:
        assert session.start.header.division == [1, 2]


def test_a_recipe_leaves_the_vocabulary_of_a_run_as_it_was_trained(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 40)
    settings = TINY | {"train.batch_size": 2, "train.iters": 2, "train.eval_windows": 2, "train.sample_every": 0}
    pairs = {"data.tokenizer": "bpe", "data.vocab_size": 24, "data.corpus": (str(tmp_path / "text.txt"),)}
    list(mlx_gpt.train(settings=settings | pairs, out=tmp_path / "run"))
    again = mlx_gpt.train(resume=tmp_path / "run", recipe="randygpt", settings={"train.iters": 3})
    assert again.trainer.config.data.bpe_rule == "lines" and again.trainer.config.optimizer.name == "adamw"
    again.close()
    with pytest.raises(ResumeRefused, match="data.bpe_rule is randygpt"):
        mlx_gpt.train(resume=tmp_path / "run", settings={"data.bpe_rule": "randygpt"})
