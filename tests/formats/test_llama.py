"""Llama's network in folders without code, which transformers and mlx-lm implement themselves."""

import dataclasses
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import far_from_start, small_tokenizer
from commands import mlxgpt
from constants import ROOT
from networks import LLAMA

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile
from mlx_gpt.formats import llama
from mlx_gpt.formats.huggingface.folder import names_of
from mlx_gpt.formats.huggingface.quantize import quantize
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.run.loading import read_checkpoint
from mlx_gpt.train.objective import cross_entropy

SHAPE = {"n_embd": 64, "n_head": 4, "n_layer": 2, "block_size": 128}
OTHER_PYTHON = os.environ.get("MLXGPT_EXPORT_PYTHON")
KINDS = {"char": {"n_kv_head": 1}, "bpe": {"tied_head": False}, "byte-bpe": {}}


@pytest.fixture(scope="module")
def text():
    return "\n".join(open_corpus(["pydocs"]).documents)


@pytest.fixture(scope="module", params=KINDS)
def saved(request, text, tmp_path_factory):
    """A checkpoint of each kind of tokenizer, with weights far from their initial values."""
    model, tokenizer = ModelConfig(**SHAPE, **(LLAMA | KINDS[request.param])), small_tokenizer(request.param, text)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    store.save(path, far_from_start(model, tokenizer))
    return path


def export(path, folder, *more):
    done = mlxgpt("export", path, folder, *more, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("preset", ["llama-s", "llama-m", "llama-l", "llama-125m"])
def test_the_presets_are_llamas_networks(preset):
    assert llama.refuses(resolve(preset).model) is None


def test_every_other_setting_is_named():
    for key, value in {"qk_norm": True, "ffn": "relu2", "positions": "learned", "norm_weights": False}.items():
        model = ModelConfig(**SHAPE, **(LLAMA | {key: value}))
        assert f"model.{key}={json.dumps(value)} instead of" in llama.refuses(model)


@pytest.mark.parametrize("scheme", ["transformers", "gguf"])
def test_every_weight_has_one_name_in_each_scheme(scheme):
    for tied in (True, False):
        model = ModelConfig(**SHAPE, **(LLAMA | {"tied_head": tied}))
        names = llama.weight_names(model, scheme)
        assert names.keys() == shapes_of(model, 5).keys() and len(set(names.values())) == len(names)


@pytest.mark.parametrize("target", ["huggingface", "mlx-lm"])
def test_a_folder_has_no_code_and_comes_back(saved, tmp_path, target):
    out = export(saved, tmp_path / "out", "--to", target)
    assert not list(out.glob("*.py")) and "trust" not in (out / "README.md").read_text()
    first, back = read_checkpoint(saved), read_checkpoint(out)
    assert back.weights.keys() == first.weights.keys()
    assert all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
    assert back.header.tokenizer == first.header.tokenizer and back.header.best_loss == 2.5
    model = first.header.config.model
    assert back.header.config.model.rope_base == model.rope_base
    assert back.header.config.model.num_kv_heads == model.num_kv_heads
    tokens = mx.array([[2, 3, 4, 5]])
    assert mx.array_equal(mlx_gpt.load(saved).model(tokens), mlx_gpt.load(out).model(tokens))


def test_an_export_over_one_with_code_leaves_none(saved, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "modeling_mlxgpt.py").write_text("old")
    export(saved, out, "--force")
    assert not list(out.glob("*.py"))


def shards(out):
    """Splits model.safetensors into two files and an index, as transformers does with large models."""
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    halves = {f"model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in range(2)}
    for name, keys in halves.items():
        safetensors.numpy.save_file({k: weights[k] for k in keys}, out / name)
    index = {"weight_map": {k: name for name, keys in halves.items() for k in keys}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_weights_in_several_files_are_read(saved, tmp_path):
    out = export(saved, tmp_path / "out")
    index = shards(out)
    first, back = read_checkpoint(saved), read_checkpoint(out)
    assert all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
    index["weight_map"].pop("model.norm.weight")
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadFile, match="index.json: model.norm.weight is missing"):
        read_checkpoint(out)
    index["weight_map"]["model.norm.weight"] = "../other.safetensors"
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadFile, match="weight_map"):
        read_checkpoint(out)


CHANGES = [
    ({"model_type": "mistral"}, "model_type 'mistral' is not supported, only llama, mlxgpt, randygpt"),
    ({"attention_bias": True}, "attention_bias True is not supported, only False"),
    ({"sliding_window": 64}, "sliding_window 64"),
    ({"hidden_act": "gelu"}, "hidden_act gelu is not supported, only silu"),
    ({"head_dim": 32}, "head_dim 32 is not supported, only 16"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "rope_type 'llama3' is not supported, only 'default'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type 'linear'"),
    ({"rope_theta": 9.0}, "rope_theta is 9.0 in one place and .* in another"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type 'linear' is not supported"),
    ({"vocab_size": None}, "vocab_size None is not allowed"),
    ({"rope_parameters": [1]}, "rope_parameters .* is not a JSON object"),
    (
        {"quantization_config": {"quant_method": "bitnet"}},
        "quantized weights cannot be read; export without --quantize and --packed",
    ),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"hidden_size": "64"}, "model.n_embd='64'"),
    ({"num_key_value_heads": 3}, "model.n_kv_head=3 does not divide"),
    ({"num_hidden_layers": 1 << 40}, "model.n_layer="),
    ({"vocab_size": -1}, "vocab_size -1"),
]


@pytest.mark.parametrize("change, words", CHANGES, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_what_is_not_our_network_is_refused_by_name(saved, tmp_path, change, words):
    out = export(saved, tmp_path / "out")
    facts = json.loads((out / "config.json").read_text()) | change
    (out / "config.json").write_text(json.dumps(facts))
    (out / "model.safetensors").write_bytes(b"")  # refused before the weights are read
    with pytest.raises(BadFile, match=words):
        read_checkpoint(out)


def test_absent_entries_have_the_defaults_of_transformers(saved, tmp_path):
    out = export(saved, tmp_path / "out")
    facts = json.loads((out / "config.json").read_text())
    needed = ("model_type", "vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
    kept = {k: facts[k] for k in (*needed, "intermediate_size", "tie_word_embeddings", "num_key_value_heads")}
    (out / "config.json").write_text(json.dumps(kept))
    model = read_checkpoint(out).header.config.model
    assert (model.norm_eps, model.rope_base, model.block_size) == (1e-6, 10000.0, 2048)


def expectations(path, text, file):
    """Writes what use_llama.py compares with: logits, loss, gradients, greedy texts and ids."""
    run = mlx_gpt.load(path)
    tokens, count = mx.array(run.tokenizer.encode(text[:2000])[:80].astype(np.int32).reshape(2, 40)), 20

    def loss(weights):
        return cross_entropy(run.model.apply(weights, tokens[:, :-1])[0], tokens[:, 1:]).mean()

    value, gradients = mx.value_and_grad(loss)(run.model.weights())
    names = names_of(run.header)
    prompts = ["The", "An object is ", "x", text[1000:1060]]
    pairs = [(p, "".join(mlx_gpt.generate(run, p, max_tokens=count, temperature=0))) for p in prompts]
    texts = ["The  end.\n\n  x", "\n", " ", "<|eos", "a<|eos|>b", text[:500]]
    np.savez(
        file,
        tokens=tokens,
        logits=np.array(run.model(tokens)),
        loss=value.item(),
        count=count,
        pairs=json.dumps(pairs),
        texts=json.dumps([(t, run.tokenizer.encode(t).tolist()) for t in texts]),
        **{f"gradient.{names[k]}": np.array(g) for k, g in gradients.items()},
    )


def use(library, folder, expected, scratch):
    """Runs use_llama.py in the environment of the other libraries."""
    script = [OTHER_PYTHON, ROOT / "tests/exports/use_llama.py", library, folder, expected, scratch]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"HF_HOME": str(scratch / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, capture_output=True, text=True, env=env, cwd=scratch.parent)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("ok"), done.stderr[-3000:]


@pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with transformers and mlx-lm; make test-exports")
@pytest.mark.parametrize("library, target", [("transformers", "huggingface"), ("mlx-lm", "mlx-lm")])
def test_the_real_libraries_compute_the_same_without_code(saved, text, tmp_path, library, target):
    """Outputs, gradients and greedy texts; transformers also trains a step and saves what mlxgpt reads again."""
    out = export(saved, tmp_path / "out", "--to", target)
    expectations(saved, text, tmp_path / "expected.npz")
    use(library, out, tmp_path / "expected.npz", tmp_path / "scratch")
    if library == "transformers":
        first, back = read_checkpoint(saved), read_checkpoint(tmp_path / "scratch")
        assert all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
        assert back.header.tokenizer["kind"] == first.header.tokenizer["kind"]


@pytest.mark.skipif(not OTHER_PYTHON, reason="needs an environment with transformers and mlx-lm; make test-exports")
@pytest.mark.parametrize("bits", ["8", "4"])
def test_quantized_folders_compute_their_rounded_weights_in_mlx_lm(saved, text, tmp_path, bits):
    (tmp_path / "text.txt").write_text(text[:20_000])
    out = export(saved, tmp_path / "out", "--to", "mlx-lm", "--quantize", bits, "--corpus", tmp_path / "text.txt")
    first = store.load(saved)
    rounded = dataclasses.replace(first, weights=quantize(first.weights, int(bits))[1])
    store.save(tmp_path / "rounded.safetensors", rounded)
    expectations(tmp_path / "rounded.safetensors", text, tmp_path / "expected.npz")
    use("mlx-lm", out, tmp_path / "expected.npz", tmp_path / "scratch")


# -- the command ----------------------------------------------------------------------------------------------------


def test_export_alone_lists_what_is_possible_and_why_the_rest_is_not(saved, tmp_path):
    done = mlxgpt("export", saved, cwd=tmp_path)
    assert done.returncode == 0 and "no:" not in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["transformers", "mlx-lm", "llama.cpp"]
    plain = Checkpoint(
        header=Header(config=Config(model=ModelConfig(**SHAPE)), vocab_size=5, step=1, num_updates=1),
        weights={k: np.ones(s, np.float32) for k, s in shapes_of(ModelConfig(**SHAPE), 5).items()},
        optimizer={},
    )
    store.save(tmp_path / "plain.safetensors", plain)
    done = mlxgpt("export", "plain.safetensors", cwd=tmp_path)
    first, _, last = done.stdout.splitlines()
    assert "mlxgpt export plain.safetensors DIR" in first
    assert 'no: gguf holds only Llama\'s network, not model.positions="learned" instead of "rotary"' in last


def test_a_gguf_file_is_written_by_its_name(saved, tmp_path):
    for name, more in (("a.gguf", ()), ("b", ("--to", "gguf", "--gguf-type", "f16"))):
        export(saved, tmp_path / name, *more)
        assert (tmp_path / name).read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "b").stat().st_size < 0.75 * (tmp_path / "a.gguf").stat().st_size
    first, back = read_checkpoint(saved), read_checkpoint(tmp_path / "a.gguf")
    assert all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
    for arguments, words in (
        (("a.gguf",), "already exists; name another file, or overwrite it with --force"),
        (("c.gguf", "--quantize", "4"), "give --gguf-type Q8_0"),
        (("folder", "--gguf-type", "F16"), "is for GGUF files, not for huggingface"),
        (("..", "--to", "gguf"), "is a folder; name a file in it"),
        (("c.gguf", "--gguf-type", "Q4_K"), "'Q4_K' is not one of"),
        (("c.gguf", "--gguf-type", "Q4_0"), "Q4_0 holds only ternary matrices"),
        (("--gguf-type", "F16"), "--gguf-type needs a destination"),
        (("",), "the destination is the current folder"),
        (("c.gguf", "--packed"), "--packed is for folders, and c.gguf is a GGUF file"),
        (("--packed",), "--packed needs a destination"),
        (("no/c.gguf",), "no/c.gguf: there is no folder no; create it"),
        (("folder", "--packed"), "--packed is for ternary networks, but this one has model.linear=dense"),
    ):
        done = mlxgpt("export", saved, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    before = (tmp_path / "a.gguf").read_bytes()
    done = mlxgpt("export", "a.gguf", "a.gguf", "--gguf-type", "F16", "--force", cwd=tmp_path)
    assert done.returncode == 2 and "a.gguf: is the file that is read" in done.stderr
    (tmp_path / "run").mkdir()
    shutil.copy(saved, tmp_path / "run/best.safetensors")
    done = mlxgpt("export", "run", "run", "--force", cwd=tmp_path)
    assert done.returncode == 2 and "run: is a run folder; name another folder" in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["best.safetensors"]
    done = mlxgpt("export", "a.gguf", "again.gguf", cwd=tmp_path)
    assert done.returncode == 0 and "the matrices have the GGUF type F32" in done.stderr
    assert (tmp_path / "again.gguf").read_bytes() == before == (tmp_path / "a.gguf").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.gguf", "again.gguf", "b", "run"}


@pytest.mark.parametrize("name", ["folder", "model.gguf"])
def test_a_ternary_network_is_exported_with_the_values_of_its_forward_pass(saved, tmp_path, name):
    """To the bit, and with the same logits. The shadow weights themselves are other numbers."""
    first = read_checkpoint(saved)
    model = dataclasses.replace(first.header.config.model, linear="ternary")
    header = dataclasses.replace(first.header, config=Config(model=model))
    store.save(tmp_path / "ternary.safetensors", dataclasses.replace(first, header=header))
    export(tmp_path / "ternary.safetensors", tmp_path / name)
    back = read_checkpoint(tmp_path / name)
    tokens = mx.array([[2, 3, 4, 5]])
    ours, theirs = (mlx_gpt.load(tmp_path / file).model(tokens) for file in ("ternary.safetensors", name))
    assert mx.array_equal(ours, theirs) and back.header.config.model.linear == "dense"
    wq = "layers.0.attn.wq.weight"
    assert len(np.unique(np.abs(back.weights[wq]))) == 2 and not np.array_equal(back.weights[wq], first.weights[wq])


# -- tokenizers of other programs -----------------------------------------------------------------------------------


def foreign(out, eos="<|im_end|>", extra=5):
    """Makes an exported folder with a byte-level tokenizer look like one of another program."""
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    facts, config = (json.loads((out / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    del facts["mlxgpt"]
    text = json.dumps(tokenizer).replace("<|eos|>", eos)
    (out / "tokenizer.json").write_text(text)
    config |= {"eos_token": {"content": eos}, "bos_token": None, "chat_template": "{{ messages[0].content }}"}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    weights = safetensors.numpy.load_file(out / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.concatenate([embedding, embedding[:extra]])
    safetensors.numpy.save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(facts | {"vocab_size": len(embedding) + extra}))


def test_special_tokens_chat_template_and_padded_vocabulary_of_another_program_are_kept(saved, tmp_path):
    if mlx_gpt.load(saved).tokenizer.kind != "byte-bpe":
        pytest.skip("only a byte-level vocabulary comes from other programs")
    out = export(saved, tmp_path / "out")
    ids = mlx_gpt.load(out).tokenizer.encode("the cat").tolist()
    foreign(out)
    run = mlx_gpt.load(out)
    tokenizer = run.tokenizer
    assert tokenizer.special_names == ("<|im_end|>", "<|im_end|>") and tokenizer.encode("the cat").tolist() == ids
    assert tokenizer.vocab_size == run.model.vocab_size and tokenizer.decode([tokenizer.vocab_size - 1]) == ""
    assert mlxgpt("convert", out, "model.safetensors", cwd=tmp_path).returncode == 0
    again = export(tmp_path / "model.safetensors", tmp_path / "again")
    config = json.loads((again / "tokenizer_config.json").read_text())
    assert (config["chat_template"], config["eos_token"]) == ("{{ messages[0].content }}", "<|im_end|>")
    assert read_checkpoint(again).header.tokenizer == read_checkpoint(out).header.tokenizer
    (out / "chat_template.jinja").write_text("other")
    assert mlx_gpt.load(out).tokenizer.chat_template == "other"
