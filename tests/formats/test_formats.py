"""The table of formats: each holds a network and gives it back, or says beforehand why it can't."""

import dataclasses
import re

import numpy as np
import pytest
from networks import LLAMA, NETWORKS, blocks, names, network, shaped

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.cli import convert
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import FORMATS, format_of, llama
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.model.packing import PACKED

CHARACTERS = "\nabcdefgh"


def checkpoint(settings, tokenizer=True) -> Checkpoint:
    model = shaped(settings)
    vocab_size, draw = len(CHARACTERS) + 2, np.random.default_rng(0)
    weights, m, v = (
        {k: draw.normal(size=s).astype(np.float32) for k, s in shapes_of(model, vocab_size).items()} for _ in "wmv"
    )
    if model.linear == PACKED:  # which is not trained
        weights, m, v = {k: np.array(w) for k, w in network(settings).weights().items()}, {}, {}
    header = Header(
        config=Config(model=model),
        vocab_size=vocab_size,
        step=7,
        num_updates=6,
        best_loss=2.5,
        best_step=5,
        tokenizer={"kind": "char", "characters": CHARACTERS} if tokenizer else None,
        corpus="0" * 64,
    )
    moments = {f"{part}.{k}": t for part, tensors in (("m", m), ("v", v)) for k, t in tensors.items()}
    return Checkpoint(header=header, weights=weights, optimizer=moments)


@pytest.mark.parametrize("settings", [*NETWORKS, {"ffn_dim": 40}, *blocks()], ids=names)
@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_what_is_refused_raises_and_what_is_not_comes_back(tmp_path, toys, format, settings):
    before, path = checkpoint(settings), tmp_path / "model"
    if reason := format.refuses(before.header.config):
        with pytest.raises(UserError) as caught:
            format.write(before, path)
        assert str(caught.value) == reason and not path.exists()
        assert re.search(r"\bmodel\.\w+=", reason), "it names a setting"
        return
    format.write(before, path)
    # Folders of Llama's network contain no code that tells mlx-lm's from those of transformers.
    is_llama = format.is_folder and llama.refuses(before.header.config.model) is None
    assert path.is_dir() == format.is_folder and format_of(path) is (FORMATS["huggingface"] if is_llama else format)
    after = format.read(path, before.header.config.model.architecture())
    assert after.weights.keys() == before.weights.keys()
    assert all(
        np.array_equal(w, before.weights[k]) and w.dtype == before.weights[k].dtype for k, w in after.weights.items()
    )
    ours, theirs = before.header, after.header
    model = ours.config.model
    # Other programs' formats have the base of the rotary frequencies that is in use, and no factor.
    alike = dataclasses.replace(model, rope_theta=model.rope_base, rope_scale=1.0) if is_llama else model
    assert theirs.config.model.architecture() == alike.architecture()
    assert (theirs.vocab_size, theirs.step, theirs.num_updates, theirs.best_loss) == (ours.vocab_size, 7, 6, 2.5)
    assert theirs.tokenizer == (None if format.name.startswith("rgpt") else ours.tokenizer)
    weights_only = format.is_folder or format.name in ("rgpt0002", "gguf")
    assert set(after.optimizer or {}) == (set() if weights_only else set(before.optimizer))
    assert all(np.array_equal(a, before.optimizer[k]) for k, a in (after.optimizer or {}).items())


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda f: f.name)
def test_every_row_keeps_to_the_protocol(format):
    assert FORMATS[format.name] is format and isinstance(format.is_folder, bool)
    int8 = {"linear": "ternary", "ternary_group": "64", "ternary_activations": "int8", "norm_eps": 1e-6}
    held = {"gguf": LLAMA, "nanochat": LLAMA | int8}.get(format.name, {})
    config = Config(model=ModelConfig(n_embd=64, n_head=2, n_layer=2, block_size=8, **held))
    assert format.refuses(config) is None, "every format holds randyGPT's network, or Llama's"


def test_refusals_are_in_words_of_the_format():
    config = checkpoint({"positions": "rotary", "qk_norm": True}).header.config
    assert FORMATS["rgpt0002"].refuses(config) == (
        'rgpt0002 holds only randyGPT\'s network, not model.positions="rotary", model.qk_norm=true; '
        "keep the safetensors file"
    )


@pytest.mark.parametrize(
    "setting", [{"mixers": ("other",)}, {"ffn": "other"}, {"linear": "other"}, {"residual": "other"}]
)
def test_a_network_that_a_format_has_no_code_for_is_refused_before_anything_is_written(tmp_path, setting):
    before, model = checkpoint({}), ModelConfig(n_embd=16, n_head=2, n_layer=2, block_size=8, **setting)
    before = dataclasses.replace(before, header=dataclasses.replace(before.header, config=Config(model=model)))
    for name, format in FORMATS.items():
        if name == "safetensors":
            assert format.refuses(before.header.config) is None
            continue
        assert f"{name} " in format.refuses(before.header.config)
        with pytest.raises(UserError, match=f"model.{next(iter(setting))}="):
            format.write(before, tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["huggingface", "mlx-lm"])
def test_a_folder_needs_a_tokenizer(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} needs a tokenizer"):
        FORMATS[name].write(checkpoint({}, tokenizer=False), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_no_format_recognizes_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"nothing of the kind")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "a.bin", tmp_path / "folder"):
        with pytest.raises(BadFile, match="neither an RGPT file nor a safetensors file nor a GGUF file"):
            format_of(path)


def test_the_command_line_offers_every_format_that_is_one_file():
    assert set(convert.FORMATS) == {name for name, format in FORMATS.items() if not format.is_folder}
