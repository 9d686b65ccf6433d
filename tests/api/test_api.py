"""The Python interface: it does what the command does, and refuses what the command refuses."""

import dataclasses
import json

import numpy as np
import pytest
from commands import mlxgpt
from constants import TINY
from devices import tolerance

import mlx_gpt
from mlx_gpt import api
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import Mismatch, ResumeRefused, UserError
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.model.packing import as_dense
from mlx_gpt.train.reports import EvalReport, StopReport
from mlx_gpt.watch.metrics import read_metrics

SETTINGS = TINY | {"train.batch_size": 2, "train.iters": 6, "train.eval_every": 3, "data.val_fraction": 0.3}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 40)
    return path


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    """A trained run."""
    folder = tmp_path_factory.mktemp("api") / "run"
    session = mlx_gpt.train(corpus=text, settings=SETTINGS, out=folder)
    assert session.folder == folder and isinstance(list(session)[-1], StopReport)
    return folder


def test_a_run_is_that_of_the_command(folder, text, tmp_path):
    """The same files, the same reports but for the time they took, the same weights. Only the command samples."""
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    done = mlxgpt("train", "--corpus", text, *settings, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "run").iterdir()}
    assert (folder / "run.toml").read_text() == (tmp_path / "run/run.toml").read_text()
    times = {"seconds", "elapsed", "path", "peak_memory", "num_bytes", "free_bytes"}
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in times} for line in read_metrics(file) if line["report"] != "sample"]
        for file in (folder / "metrics.jsonl", tmp_path / "run/metrics.jsonl")
    )
    assert ours == theirs
    ours, theirs = (store.load(path / "checkpoint.safetensors") for path in (folder, tmp_path / "run"))
    assert all(np.array_equal(w, theirs.weights[name]) for name, w in ours.weights.items())


def test_a_run_is_resumed_fine_tuned_and_stopped(folder, text, tmp_path):
    notes = []
    session = mlx_gpt.train(resume=folder, settings={"train.iters": 8}, out=tmp_path / "more", note=notes.append)
    assert list(session)[-1].step == 8 and any("in a new run folder" in line for line in notes)
    assert list(mlx_gpt.train(resume=tmp_path / "more")) == []
    long = {"train.iters": 900, "train.eval_every": 3}
    session = mlx_gpt.train(fine_tune=folder, corpus=text, settings=long, out=tmp_path / "tuned")
    for report in session:
        if isinstance(report, EvalReport):
            session.stop()
    assert report.reason == "signal" and (tmp_path / "tuned/checkpoint.safetensors").exists()


def test_fine_tuning_may_make_the_matrices_ternary(folder, text, tmp_path):
    """Settings that keep the shapes of the weights may change. A note names each change."""
    notes, settings = [], {"model.linear": "ternary", "train.iters": 2}
    session = mlx_gpt.train(
        fine_tune=folder, corpus=text, settings=settings, out=tmp_path / "ternary", note=notes.append
    )
    assert list(session)[-1].step == 2
    assert any(line.startswith("model.linear is ternary, and was dense in") for line in notes)
    assert mlx_gpt.load(tmp_path / "ternary").config.model.linear == "ternary"
    with pytest.raises(Mismatch, match="model.block_size=4 the network has other weights"):
        mlx_gpt.train(fine_tune=folder, corpus=text, settings={"model.block_size": 4}, out=tmp_path / "other")
    with pytest.raises(UserError, match="model.linear=ternary-packed cannot be trained"):
        mlx_gpt.train("model-xs", corpus=text, settings={"model.linear": "ternary-packed"}, out=tmp_path / "no")


def test_ternary_values_are_not_made_ternary_again(folder, text, tmp_path):
    """Their scales would change. And a model of another program names no text to train on."""
    settings = {"model.linear": "ternary", "train.iters": 2}
    list(mlx_gpt.train(fine_tune=folder, corpus=text, settings=settings, out=tmp_path / "ternary"))
    checkpoint = store.load(tmp_path / "ternary/best.safetensors")
    model, weights = as_dense(checkpoint.header.config.model, checkpoint.weights)
    header = dataclasses.replace(checkpoint.header, config=Config(model=model), corpus=None, averaged=False)
    store.save(tmp_path / "dense.safetensors", Checkpoint(header=header, weights=weights, optimizer={}))
    more = {"fine_tune": tmp_path / "dense.safetensors", "out": tmp_path / "more"}
    with pytest.raises(Mismatch, match="its matrices hold ternary values, and their scales would change"):
        mlx_gpt.train(**more, corpus=text, settings=settings)
    with pytest.raises(UserError, match="names no text; give the text to train on with --corpus"):
        mlx_gpt.train(**more)


def test_evaluate_finds_the_loss_that_the_run_reported(folder, text):
    run = mlx_gpt.load(folder)
    found = mlx_gpt.evaluate(run)
    assert found.loss == pytest.approx(run.header.best_loss, abs=tolerance("float32 loss"))
    parts = [mlx_gpt.evaluate(run, text, split, batch_size=3) for split in ("train", "val")]
    assert found.tokens == parts[1].tokens < parts[0].tokens
    assert found.loss == pytest.approx(parts[1].loss, abs=tolerance("float32 loss"))


@pytest.mark.slow
def test_a_model_learns_to_fill_in_the_middle(tmp_path):
    """Each document is a part of the alphabet, so the length of the middle follows from the suffix alone."""
    letters, draw = "abcdefghijklmnopqrst", np.random.default_rng(0)
    parts = [letters[i : i + n] for i, n in zip(draw.integers(0, 12, 3000), draw.integers(3, 9, 3000), strict=True)]
    (tmp_path / "text.txt").write_text("<|eos|>".join(parts))
    small = {"model.n_embd": 64, "model.n_head": 2, "model.block_size": 16, "train.batch_size": 64, "train.iters": 300}
    small |= {"data.fim_rate": 0.7, "optimizer.learning_rate": 3e-3, "model.dropout": 0.0, "train.eval_every": 300}
    list(mlx_gpt.train(corpus=tmp_path / "text.txt", settings=TINY | small, out=tmp_path / "run"))
    run, right = mlx_gpt.load(tmp_path / "run"), 0
    for i in range(12):
        for n in (1, 2, 3):
            prompt, middle, suffix = letters[i : i + 2], letters[i + 2 : i + 2 + n], letters[i + 2 + n : i + 4 + n]
            right += "".join(mlx_gpt.generate(run, prompt, suffix=suffix, temperature=0)) == middle
    assert right >= 30


def test_generated_text_is_judged_beside_the_validation_text(folder, tmp_path):
    run = mlx_gpt.load(folder)
    found, again, other = (mlx_gpt.evaluate_text(run, samples=3, max_tokens=40, seed=seed) for seed in (1, 1, 2))
    assert found == again != other
    plain = ["".join(mlx_gpt.generate(run, max_tokens=40, seed=seed)) for seed in (1, 2, 3)]
    assert found.texts == plain and found.generated.characters == sum(map(len, plain))
    # The text repeats one line, so all of a passage of validation is in the training text.
    assert found.validation.characters == found.generated.characters
    assert found.validation.longest_copy == max(map(len, plain)) > found.generated.longest_copy
    # The words at the ends of the passages may be cut.
    assert found.validation.known_words > 0.7 and found.validation.line_length <= 40
    done = mlxgpt("eval", folder, "--text", "--samples", 3, "--max-tokens", 40, "--seed", 1, "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert facts["texts"] == plain and facts["generated"] == dataclasses.asdict(found.generated)
    assert facts["validation"] == dataclasses.asdict(found.validation)
    done = mlxgpt("eval", folder, "--text", "--samples", 2, "--max-tokens", 9, cwd=tmp_path)
    assert "generated validation" in done.stdout and "longest copied passage" in done.stdout
    assert "NAME:" not in done.stdout  # the text is no play
    done = mlxgpt("eval", folder, "--samples", 2, cwd=tmp_path)
    assert done.returncode == 2 and "--samples is an option of --text; add --text" in done.stderr
    with pytest.raises(UserError, match="samples=0 is not allowed"):
        mlx_gpt.evaluate_text(run, samples=0)


def test_generate_continues_a_prompt(folder):
    run = mlx_gpt.load(folder)
    texts = ["".join(mlx_gpt.generate(run, "to be", max_tokens=20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] and 0 < len(texts[0]) <= 20


def test_generate_fills_in_the_middle(folder, text, tmp_path):
    """The model reads prompt and suffix in the order of its training, and one without special tokens refuses."""
    list(mlx_gpt.train(corpus=text, settings=SETTINGS | {"data.fim_rate": 0.5}, out=tmp_path / "run"))
    run = mlx_gpt.load(tmp_path / "run")
    assert mlx_gpt.evaluate(run).loss == pytest.approx(run.header.best_loss, abs=tolerance("float32 loss"))
    before, after, between = run.tokenizer.fim_ids
    made = "".join(mlx_gpt.generate(run, "to be", suffix="is the", max_tokens=9, temperature=0))
    prompt, suffix = (run.tokenizer.encode(part).tolist() for part in ("to be", "is the"))
    given, expected = [before, *prompt, after, *suffix, between], []
    assert api.stream(run, "to be", Sampling(), 9, suffix="is the").prompt == given
    for _ in range(9):
        expected.append(int(run.model(np.array([given + expected]))[0, -1].argmax()))
    assert made == run.tokenizer.decode(expected[: [*expected, 1].index(1)])
    done = mlxgpt("generate", tmp_path / "run", "-p", "to be", "--suffix", "be to", "--seed", 1, cwd=tmp_path)
    assert done.stdout.startswith("to be") and done.stdout.endswith("be to\n")
    done = mlxgpt("generate", tmp_path / "run", "--suffix", "be to", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["suffix"] == "be to"
    with pytest.raises(UserError, match="suffix: the tokenizer has no special tokens for fill-in-the-middle"):
        mlx_gpt.generate(mlx_gpt.load(folder), "to be", suffix="to be")
    with pytest.raises(UserError, match="have 68 tokens with their three special tokens, but the context .* has 64"):
        mlx_gpt.generate(run, "to be " * 5, suffix="to be" * 7)
    with pytest.raises(UserError, match="suffix: 'é'"):
        mlx_gpt.generate(run, suffix="é")


@pytest.mark.parametrize("name, format", [("a.bin", "rgpt0002"), ("a.safetensors", "safetensors")])
def test_convert_chooses_the_format_by_name_and_says_it(folder, tmp_path, name, format):
    assert mlx_gpt.convert(folder, tmp_path / name) == format
    sizes = {key.removeprefix("model."): size for key, size in TINY.items()}
    back, first = mlx_gpt.load(tmp_path / name, **sizes), mlx_gpt.load(folder)
    assert (back.tokenizer is None) == (format != "safetensors")
    tokens = np.arange(8)[None]
    assert np.array_equal(np.array(back.model(tokens)), np.array(first.model(tokens)))


def test_another_network_than_requested_is_a_mismatch_and_refuses_a_resume_only_in_train(folder):
    with pytest.raises(Mismatch, match=r"best\.safetensors: .* n_layer"):
        mlx_gpt.load(folder, n_layer=7)
    with pytest.raises(ResumeRefused, match=r"\.safetensors: .* n_layer"):
        mlx_gpt.train(resume=folder, settings={"model.n_layer": 7})


def test_an_rgpt_file_gets_the_characters_of_its_text(folder, text, tmp_path):
    mlx_gpt.convert(folder, tmp_path / "a.bin", "rgpt0002")
    sizes = {key.removeprefix("model."): size for key, size in TINY.items()}
    run = mlx_gpt.load(tmp_path / "a.bin", corpus=str(text), **sizes)
    assert run.tokenizer.to_dict() == mlx_gpt.load(folder).tokenizer.to_dict()
    with pytest.raises(Mismatch, match=r"a\.bin: has .* ids, but corpus pydocs"):
        mlx_gpt.load(tmp_path / "a.bin", corpus="pydocs", **sizes)


def test_export_returns_the_files_it_wrote_and_push_lists_them(folder, tmp_path):
    notes = []
    paths = mlx_gpt.export(folder, tmp_path / "out", "mlx-lm", quantize=8, note=notes.append)
    assert {p.name for p in paths} == {p.name for p in (tmp_path / "out").iterdir()} >= {"model.safetensors"}
    assert "validation loss" in notes[-1]
    assert mlx_gpt.push(tmp_path / "out", "ada/tiny") == {p.name: p.stat().st_size for p in sorted(paths)}


def test_wrong_arguments_are_refused_with_what_is_allowed(folder, tmp_path):
    run = mlx_gpt.load(folder)
    bare = mlx_gpt.Run(model=run.model, tokenizer=None, header=run.header)
    for call, words in (
        (lambda: mlx_gpt.evaluate(run, split="test"), "split='test' .* val, train, all"),
        (lambda: mlx_gpt.evaluate(run, batch_size=0), "batch_size=0"),
        (lambda: mlx_gpt.evaluate(bare), "no tokenizer"),
        (lambda: mlx_gpt.evaluate(run, "absent.txt"), "absent.txt"),
        (lambda: mlx_gpt.generate(bare), "no tokenizer"),
        (lambda: mlx_gpt.generate(run, "to", temperature=-1), "temperature=-1"),
        (lambda: mlx_gpt.convert(folder, tmp_path / "a.bin", "ggml"), "format='ggml' .* rgpt0003"),
        (lambda: mlx_gpt.export(folder, tmp_path / "out", "onnx"), "target='onnx' .* mlx-lm, gguf"),
        (lambda: mlx_gpt.export(folder, tmp_path / "out", "mlx-lm", quantize=5), "quantize=5 .* 8, 4"),
        (lambda: mlx_gpt.train("model-q"), "model-q"),
        (lambda: mlx_gpt.train(corpus="pydocs", settings={"data.corpus": ("stdlib",)}), "data.corpus is given twice"),
        (lambda: mlx_gpt.train(settings={"train.itres": 5}), "train.iters"),
        (lambda: mlx_gpt.train(resume=folder, fine_tune=folder), "give one of them"),
        (lambda: mlx_gpt.train(out=folder), "already holds a run"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert not list(tmp_path.iterdir())


def test_a_path_in_the_place_of_a_model_is_named():
    for call in (lambda: mlx_gpt.evaluate("runs/a"), lambda: mlx_gpt.generate("runs/a", "x")):
        with pytest.raises(UserError, match="runs/a.*mlx_gpt.load"):
            call()


def test_the_model_card_leaves_out_lines_of_metrics_that_are_no_evaluation(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_gpt.api.exporting._curve", lambda src, folder: [])
    good = {"step": 3, "tokens": 300, "val_loss": 2.5, "val_ppl": 12.2, "elapsed": 1.0}
    odd = [good | {key: value} for key in good for value in (None, "1", [1], True) if key != "elapsed"]
    store.save(tmp_path / "best.safetensors", store.load(folder / "best.safetensors"))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*odd, good]))
    mlx_gpt.export(tmp_path / "best.safetensors", tmp_path / "out")
    assert (tmp_path / "out/README.md").read_text().count("| 3 | 300 | 2.5000 | 12.20 |") == 1
