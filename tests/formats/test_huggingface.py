"""Exports: what is in a folder, that it comes back, and that the real libraries load it and say the same.

The libraries live in another environment, whose Python MLXGPT_EXPORT_PYTHON names; `make test-exports` makes it.
"""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from checkpoints import far_from_start, small_tokenizer
from commands import mlxgpt
from constants import ROOT
from networks import EXTENSIONS

import mlx_gpt
from mlx_gpt.api import load
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.data.vocabularies import tokenizer_from_dict
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats.huggingface import coded
from mlx_gpt.formats.huggingface import folder as huggingface
from mlx_gpt.formats.huggingface.card import card
from mlx_gpt.formats.huggingface.quantize import quantize
from mlx_gpt.model.gpt import GPT
from mlx_gpt.run.loading import read_checkpoint
from mlx_gpt.train.objective import cross_entropy

SHAPE = {"n_embd": 64, "n_head": 4, "n_layer": 2, "block_size": 64}
KINDS = {"char": {}, "bpe": EXTENSIONS, "byte-bpe": {"positions": "rotary"}}
OPTIONS = {"huggingface": "transformers_options.py", "mlx-lm": "mlx_lm_options.py"}
OTHER_PYTHON = os.environ.get("MLXGPT_EXPORT_PYTHON")
needs_the_libraries = pytest.mark.skipif(not OTHER_PYTHON, reason="needs transformers and mlx-lm: make test-exports")


@pytest.fixture(scope="module")
def text():
    return "\n".join(open_corpus(["pydocs"]).documents)


@pytest.fixture(scope="module", params=KINDS)
def saved(request, text, tmp_path_factory):
    """A checkpoint whose weights are far from their small beginnings, of each kind of tokenizer."""
    model, tokenizer = ModelConfig(**SHAPE, **KINDS[request.param]), small_tokenizer(request.param, text)
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    store.save(path, far_from_start(model, tokenizer))
    return path


def export(path, folder, *more):
    done = mlxgpt("export", path, folder, *more, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("target", huggingface.TARGETS)
def test_a_folder_holds_what_loaders_look_for_and_comes_back(saved, tmp_path, target):
    export(saved, tmp_path / "out", "--to", target, "--license", "mit")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("special_tokens_map.json", "README.md", *coded.CODE[target]),
    }
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card and "2.5000 nats" in card
    assert mlxgpt("convert", tmp_path / "out", tmp_path / "back.safetensors", cwd=tmp_path).returncode == 0
    back, first = store.load(tmp_path / "back.safetensors"), store.load(saved)
    assert (
        all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
        and back.weights.keys() == first.weights.keys()
    )
    again, tokenizer = (tokenizer_from_dict(found.header.tokenizer) for found in (back, first))
    for text in ("the cat", " sat on\n\nthe mat ", tokenizer.decode(list(range(2, tokenizer.vocab_size)))):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert (back.header.step, back.header.best_loss) == (7, 2.5)
    assert back.header.config.model == first.header.config.model


@pytest.mark.parametrize("alphabet", ["ab\n", "abc <|>eos", "<>|bose \ue000\n"])
def test_characters_are_the_librarys_on_every_string(alphabet):
    """Those that spell the specials too."""
    tokenizer, draw = CharTokenizer("".join(sorted(alphabet))), random.Random(0)
    plain = tokenizers.Tokenizer.from_str(huggingface.tokenizer_json(tokenizer))
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 60))) for _ in range(300)]
    if "<" in alphabet:
        texts += ["<|eos|>", "<|bos|><|eos|>e", "<<|eos|>>"] * (set("<|bose>") <= set(alphabet))
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        assert plain.encode(text).ids == ids and plain.decode(ids) == text, text
    assert plain.get_vocab_size() == tokenizer.vocab_size
    assert [plain.token_to_id(name) for name in huggingface.special_names(tokenizer)] == [0, 1]


def test_an_export_over_one_for_others_leaves_none_of_their_code(saved, tmp_path):
    for target in ("huggingface", "mlx-lm", "huggingface"):
        export(saved, tmp_path / "out", "--to", target, "--force")
        assert {p.name for p in (tmp_path / "out").glob("*.py")} == set(coded.CODE[target])


def test_a_quantized_folder_is_no_checkpoint_and_needs_no_text(saved, tmp_path):
    """The loss is told where the text is at hand; the folder is refused by name on its way back."""
    done = export(saved, tmp_path / "out", "--to", "mlx-lm", "--quantize", "8", "--corpus", "absent.txt")
    assert "not measured: corpus 'absent.txt'" in done.stderr and "8 bits per weight" in done.stderr
    done = mlxgpt("convert", "out", "back.safetensors", cwd=tmp_path)
    assert done.returncode == 3 and "quantized" in done.stderr
    assert mlxgpt("push", "out", "ada/small", cwd=tmp_path).returncode == 0


def test_exported_code_holds_no_word_of_the_users(saved, tmp_path):
    for target, code in coded.CODE.items():
        export(saved, tmp_path / target, "--to", target)
        for name, template in code.items():
            assert (tmp_path / target / name).read_bytes() == (coded.TEMPLATES / template).read_bytes()


def expectations(path, text, file):
    """What the scripts in exports/ compare with."""
    run = load(path)
    T, count = run.config.model.block_size, 20
    tokens = run.tokenizer.encode(text[:2000])[:80].astype(np.int32).reshape(2, 40)
    logits = run.model(tokens)
    loss = cross_entropy(logits[:, :-1], mx.array(tokens[:, 1:])).mean().item()
    prompts = ["The", "An object is ", "x", text[1000:1400]]
    pairs = [(p, "".join(mlx_gpt.generate(run, p, max_tokens=count, temperature=0))) for p in prompts]
    within = [(p, t) for p, t in pairs if len(run.tokenizer.encode(p)) + count <= T]
    texts = [
        (t, run.tokenizer.encode(t).tolist()) for t in ["The  end.\n\n  x", "\n", " ", "<|eos", "a<|eos|>b", text[:500]]
    ]
    np.savez(
        file,
        tokens=tokens,
        logits=np.array(logits),
        loss=loss,
        greedy=json.dumps({"count": count, "pairs": pairs, "within": within}),
        texts=json.dumps(texts),
    )


def run_there(script, folder, *arguments):
    """Runs a script of exports/ in the environment of the libraries. Its last word must be ok."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [OTHER_PYTHON, ROOT / "tests/exports" / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("ok"), done.stderr[-3000:]


@needs_the_libraries
@pytest.mark.parametrize("target, script", [("huggingface", "use_transformers.py"), ("mlx-lm", "use_mlx_lm.py")])
def test_the_real_libraries_load_it_and_say_the_same(saved, text, tmp_path, target, script):
    export(saved, tmp_path / "out", "--to", target)
    expectations(saved, text, tmp_path / "expected.npz")
    run_there(script, tmp_path, tmp_path / "out", tmp_path / "expected.npz", tmp_path / "scratch")


@needs_the_libraries
@pytest.mark.parametrize("target", huggingface.TARGETS)
def test_the_options_of_the_real_libraries_say_the_same(saved, tmp_path, target):
    export(saved, tmp_path / "out", "--to", target)
    run_there(OPTIONS[target], tmp_path, tmp_path / "out", tmp_path / "scratch")
    if target == "huggingface":  # what transformers saved comes back
        back, first = read_checkpoint(tmp_path / "scratch", None, {}), store.load(saved)
        assert all(np.array_equal(w, first.weights[k]) for k, w in back.weights.items())
        again, tokenizer = (tokenizer_from_dict(found.header.tokenizer) for found in (back, first))
        assert again.encode("the cat\n\n sat").tolist() == tokenizer.encode("the cat\n\n sat").tolist()


@needs_the_libraries
def test_a_quantized_folder_loads_in_mlx_lm(text, tmp_path, saved):
    if "char" not in str(saved) and load(saved).tokenizer.kind != "char":
        pytest.skip("once is enough")
    (tmp_path / "text.txt").write_text(text[:20_000])
    done = export(saved, tmp_path / "out", "--to", "mlx-lm", "--quantize", "4", "--corpus", tmp_path / "text.txt")
    assert "4 bits per weight, in groups of 64: validation loss" in done.stderr
    expectations(saved, text, tmp_path / "expected.npz")
    run_there("use_mlx_lm.py", tmp_path, tmp_path / "out", tmp_path / "expected.npz")
    run_there(OPTIONS["mlx-lm"], tmp_path, tmp_path / "out", tmp_path / "scratch")


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_stand_for_nearly_the_same(bits):
    """Each number is off by no more than the step between two levels of its group."""
    weights = {"wpe.weight": np.ones((4, 64), np.float32), "norm.weight": np.ones(64, np.float32)}
    weights["lm_head.weight"] = np.random.default_rng(0).normal(size=(67, 64)).astype(np.float32)
    packed, meant, group = quantize(weights, bits)
    assert group == 64 and packed["lm_head.weight"].dtype == np.uint32 and packed["lm_head.scales"].shape == (67, 1)
    w = weights["lm_head.weight"]
    steps = (w.max(axis=1) - w.min(axis=1)) / (2**bits - 1)
    assert (np.abs(meant["lm_head.weight"] - w).max(axis=1) < 1.01 * steps).all()
    assert all(packed[k] is weights[k] for k in ("wpe.weight", "norm.weight"))


# -- what comes from others -----------------------------------------------------------------------------------------


def public_folder(folder, vectors, dtype=np.float32):
    """A folder as the public scripts write it: their tokenizer.json is their own vocab file."""
    vocab = json.loads((vectors / "bpe-1500.vocab.json").read_text())
    model = ModelConfig(n_embd=32, n_head=4, n_layer=2, block_size=64)
    weights = {k: np.array(w).astype(dtype) for k, w in GPT(model, 1500, seed=2).weights().items()}
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "randygpt", "vocab_size": 1500, **model.shape(), "bos_token_id": 0})
    )
    (folder / "tokenizer.json").write_text(json.dumps(vocab))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return weights


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_randygpt_export_comes_back(tmp_path, vectors, dtype):
    weights = public_folder(tmp_path / "public", vectors, dtype)
    run = load(tmp_path / "public")
    assert (run.tokenizer.kind, run.config.model.n_head, run.model.vocab_size) == ("bpe", 4, 1500)
    assert np.array_equal(run.model.weights()["wte.weight"], weights["wte.weight"].astype(np.float32))
    assert mlxgpt("convert", "public", "a.bin", "--format", "rgpt0002", cwd=tmp_path).returncode == 0
    again = read_checkpoint(tmp_path / "a.bin", None, {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64})
    assert all(np.array_equal(w, weights[k].astype(np.float32)) for k, w in again.weights.items())


def test_a_state_dict_comes_back(tmp_path, vectors):
    weights = public_folder(tmp_path / "public", vectors)
    state = tmp_path / "public/model.safetensors"
    done = mlxgpt(
        "convert",
        state,
        "a.safetensors",
        "--set",
        "model.n_head=4",
        "--vocab",
        vectors / "bpe-1500.vocab.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = store.load(tmp_path / "a.safetensors")
    assert found.header.tokenizer["kind"] == "bpe" and np.array_equal(
        found.weights["wpe.weight"], weights["wpe.weight"]
    )
    done = mlxgpt("convert", state, "b.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and "--set model.n_head=4" in done.stderr


def broken(folder, change):
    """The folder with one thing changed in its tensors or its config."""
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    change(config, weights)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")


def rename(config, weights):
    weights["layers.0.attn.bias"] = weights.pop("layers.0.attn.wq.weight")


CHANGES = [
    (lambda c, w: c.update(model_type="gpt2"), "config.json: model_type 'gpt2'"),
    (lambda c, w: c.update(mlp_dim=-1), "config.json: mlp_dim -1 is not allowed; expected a width, such as 128"),
    (lambda c, w: c.update(quantization={"bits": 4}), "quantized weights cannot be read; export without --quantize"),
    (lambda c, w: c.pop("n_embd"), "config.json: 'n_embd' is missing"),
    (lambda c, w: c.update(n_head=5), "config.json: .*n_head=5 does not divide"),
    (lambda c, w: c.update(vocab_size=-1), "config.json: vocab_size -1"),
    (
        lambda c, w: c.update(vocab_size=1501),
        r"weight \(at byte \d+\) is F32 \(1500, 32\), expected .*\(1501, 32\)",
    ),
    (lambda c, w: w.pop("wpe.weight"), "model.safetensors: wpe.weight is missing"),
    (rename, "layers.0.attn.wq.weight is missing"),
    (lambda c, w: w.update(x=np.zeros(1, np.float32)), r"model.safetensors: x \(at byte \d+\) does not belong"),
    (lambda c, w: w.update({"wpe.weight": w["wpe.weight"].T.copy()}), r"wpe.weight \(at byte \d+\) is F32 \(32, 64\)"),
    (lambda c, w: w.update({"wpe.weight": w["wpe.weight"].astype(np.uint8)}), r"wpe.weight \(at byte \d+\) is U8"),
    (lambda c, w: w.update({"wpe.weight": w["wpe.weight"] * np.nan}), "wpe.weight holds values that are not finite"),
]


@pytest.mark.parametrize("change, words", CHANGES)
def test_what_does_not_fit_is_named_with_its_place(tmp_path, vectors, change, words):
    public_folder(tmp_path / "public", vectors)
    broken(tmp_path / "public", change)
    with pytest.raises(BadFile, match=words):
        load(tmp_path / "public")


# -- commands -------------------------------------------------------------------------------------------------------


def test_push_tells_and_sends_nothing(saved, tmp_path):
    export(saved, tmp_path / "out")
    done = mlxgpt("push", "out", "ada/shakespeare", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and "model.safetensors" in done.stdout and "would be sent (add --yes)" in done.stdout
    facts = json.loads(mlxgpt("push", "out", "ada/shakespeare", "--json", cwd=tmp_path).stdout)
    assert not facts["sent"] and facts["files"].keys() >= {"config.json", "model.safetensors"}
    (tmp_path / "out/.env").write_text("secret")
    (tmp_path / "out/.git").mkdir()
    (tmp_path / "out/link").symlink_to("/etc/hostname")
    done = mlxgpt("push", "out", "ada/shakespeare", cwd=tmp_path)
    assert "not sent: .env, .git, link" in done.stderr and "link" not in done.stdout and ".env" not in done.stdout
    weights = tmp_path / "out/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    done = mlxgpt("push", "out", "ada/shakespeare", cwd=tmp_path)
    assert done.returncode == 3 and "model.safetensors: not a complete safetensors file" in done.stderr
    for arguments, words in (
        (["out", "shakespeare"], "OWNER/NAME"),
        (["out", "ada/two words"], "OWNER/NAME"),
        (["out", "a/b/c"], "OWNER/NAME"),
        ([tmp_path, "a/b"], "no exported model"),
    ):
        done = mlxgpt("push", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr


def test_silly_exports_are_one_line(saved, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    (tmp_path / "file").write_text("")
    bare = dataclasses.replace(store.load(saved), header=dataclasses.replace(store.load(saved).header, tokenizer=None))
    store.save(tmp_path / "bare.safetensors", bare)
    for arguments, words in (
        ([saved, "full"], "full: is not empty"),
        ([saved, "file"], "file: is a file"),
        ([saved, "out", "--quantize", "4"], "--to mlx-lm"),
        ([saved, "out", "--quantize", "5"], "--quantize"),
        ([saved, "out", "--to", "gguf"], "gguf"),
        ([saved, "out", "--license", "mit\nx: y"], "not the name of a license"),
        (["absent", "out"], "absent: no such file"),
        (["bare.safetensors", "out"], "has no tokenizer"),
    ):
        done = mlxgpt("export", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_folder_is_run(tmp_path, vectors, monkeypatch):
    """Its code is not imported, its pickles are not read."""
    public_folder(tmp_path / "public", vectors)
    (tmp_path / "public/modeling_randygpt.py").write_text("raise SystemExit('run')")
    (tmp_path / "public/pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    code = (
        "import sys; from mlx_gpt.api import load; before = set(sys.modules); load(sys.argv[1]); "
        "assert not [name for name in set(sys.modules) - before if 'pickle' in name or 'randygpt' in name]"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "public")], cwd=ROOT, capture_output=True).returncode
        == 0
    )


def test_the_card_says_only_what_is_known_of_the_training():
    """A checkpoint of another program knows neither its text nor its losses."""
    tokenizer = CharTokenizer("ab").to_dict()
    imported = Header(config=Config(), vocab_size=4, step=0, num_updates=0, tokenizer=tokenizer)
    text = card(imported, "name", "huggingface", "mit", [], False, ["a note"])
    assert not {"pydocs", "None", "inf", " 0 "} & set(re.split(r"[(\s]", text.split("## Training")[1]))
    assert "- a note" in text
    assert "not known" in card(imported, "name", "huggingface", "mit", [], False, [])


def test_a_loss_is_not_measured_on_a_text_that_nobody_named(saved):
    run = load(saved)
    unknown = dataclasses.replace(run, header=dataclasses.replace(run.header, corpus=None))
    with pytest.raises(UserError, match="name one with --corpus"):
        mlx_gpt.evaluate(unknown)
