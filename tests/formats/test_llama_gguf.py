"""GGUF files of Llama's network: a checkpoint comes back exactly, and what is not Llama's is refused by name."""

import dataclasses
import math

import numpy as np
import pytest
from commands import mlxgpt
from hostile import require_one_line
from networks import LLAMA

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data.bpe import BPETokenizer, ByteBPETokenizer
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import FORMATS, format_of, gguf, llama_gguf
from mlx_gpt.model.gpt import shapes_of

TEXT = "the cat sat on the mat, and the dog sat on the log\n" * 20
TOKENIZERS = {
    "char": CharTokenizer.train([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 60, set(TEXT)),
    "byte-bpe": ByteBPETokenizer.train([TEXT], 280, set(TEXT)),
}
SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64}
NETWORKS = [
    LLAMA,
    LLAMA | {"tied_head": False, "n_kv_head": 0, "norm_eps": 1.23456789e-5},
    LLAMA | {"n_kv_head": 1, "rope_theta": 12345.678901, "rope_scale": 1.0, "ffn_dim": 40},
]


def checkpoint_of(kind="char", network=LLAMA, **changes) -> Checkpoint:
    model, tokenizer, draw = ModelConfig(**SHAPE, **network), TOKENIZERS[kind], np.random.default_rng(0)
    header = Header(
        config=Config(model=model),
        vocab_size=tokenizer.vocab_size,
        step=7,
        num_updates=6,
        best_loss=2.0 / 3,
        tokenizer=tokenizer.to_dict(),
    )
    shapes = shapes_of(model, tokenizer.vocab_size)
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Checkpoint(header=dataclasses.replace(header, **changes), weights=weights, optimizer={})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.gguf"
    llama_gguf.write(path, checkpoint_of())
    return path


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("network", NETWORKS, ids=["llama", "untied", "other base"])
def test_a_checkpoint_comes_back_bit_for_bit_and_its_file_byte_for_byte(tmp_path, network, kind):
    before, path = checkpoint_of(kind, network), tmp_path / "model.gguf"
    FORMATS["gguf"].write(before, path)
    assert format_of(path) is FORMATS["gguf"]
    after = FORMATS["gguf"].read(path)
    assert after.header == before.header
    assert after.weights.keys() == before.weights.keys()
    assert all(np.array_equal(w, before.weights[name]) for name, w in after.weights.items())
    FORMATS["gguf"].write(after, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(saved):
    """Of each head's 8 rows, row j of the first half is row 2 j, and row j of the second half is row 2 j + 1."""
    before, (_, entries) = checkpoint_of(), gguf.read_header(saved)
    with open(saved, "rb") as file:
        for theirs, ours, heads in (("attn_q", "wq", 4), ("attn_k", "wk", 2), ("attn_v", "wv", 0)):
            found = gguf.read_tensor(file, entries[f"blk.1.{theirs}.weight"])
            weight = before.weights[f"layers.1.attn.{ours}.weight"]
            rows = [8 * head + row for head in range(heads) for row in (0, 4, 1, 5, 2, 6, 3, 7)]
            assert np.array_equal(found, weight[rows] if heads else weight), theirs


@pytest.mark.parametrize("loss", [math.inf, 2.5])
def test_the_progress_of_a_run_comes_back(tmp_path, loss):
    llama_gguf.write(tmp_path / "a.gguf", checkpoint_of(best_loss=loss, step=1 << 40))
    header = llama_gguf.read(tmp_path / "a.gguf").header
    assert (header.step, header.num_updates, header.best_loss) == (1 << 40, 6, loss)


@pytest.mark.parametrize("file_type, error", [("F16", 2**-11), ("Q8_0", 0.505 / 127)])
def test_smaller_types_round_matrices_only(tmp_path, file_type, error):
    before = checkpoint_of(network=LLAMA | {"ffn_dim": 96})
    llama_gguf.write(tmp_path / "a.gguf", before, file_type)
    _, entries = gguf.read_header(tmp_path / "a.gguf")
    assert {entry.dtype for entry in entries.values() if len(entry.shape) == 2} == {file_type}
    assert {entry.dtype for entry in entries.values() if len(entry.shape) == 1} == {"F32"}
    for name, w in llama_gguf.read(tmp_path / "a.gguf").weights.items():
        assert np.abs(w - before.weights[name]).max() <= error * np.abs(before.weights[name]).max()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"checkpoint": checkpoint_of(network=LLAMA | {"qk_norm": True})}, "not model.qk_norm=true instead of false"),
        ({"checkpoint": checkpoint_of(tokenizer=None)}, "gguf needs a tokenizer"),
        ({"file_type": "Q4_K"}, "'Q4_K' is not allowed; choose from F32, F16, Q8_0, TQ2_0, TQ1_0, Q2_0, Q4_0"),
        (
            {"file_type": "Q4_0"},
            "Q4_0 holds only ternary matrices, but .* model.linear=dense; choose F32 or F16",
        ),
        (
            {"checkpoint": checkpoint_of(network=LLAMA | {"ffn_dim": 40}), "file_type": "Q8_0"},
            "blocks of 32, which do not divide model.ffn_dim=40; choose F32 or F16",
        ),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_it_is_written(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        llama_gguf.write(tmp_path / "a.gguf", **({"checkpoint": checkpoint_of()} | change))
    assert not list(tmp_path.iterdir())


# -- files of others ------------------------------------------------------------------------------------------------


def changed(path, change) -> None:
    """Writes a file again with other metadata and tensors."""
    metadata, entries = gguf.read_header(path)
    with open(path, "rb") as file:
        tensors = {name: gguf.read_tensor(file, entry) for name, entry in entries.items()}
    change(metadata, tensors)
    gguf.write(path, metadata, tensors, dict.fromkeys(tensors, "F32"))


def without_own_keys(metadata, tensors) -> None:
    for key in [key for key in metadata if key.startswith("mlxgpt.")]:
        del metadata[key]
    metadata["tokenizer.ggml.pre"] = "gpt-2"


def test_a_file_without_our_keys_is_read_by_those_of_llama_cpp(saved):
    """The settings are the shortest decimal numbers of the float32 values. The tokenizer is of bytes."""
    before = checkpoint_of("byte-bpe")
    llama_gguf.write(saved, before)
    changed(saved, without_own_keys)
    after = llama_gguf.read(saved)
    model, own = after.header.config.model, before.header.config.model
    assert model == dataclasses.replace(own, rope_theta=float(str(np.float32(own.rope_base))), rope_scale=1.0)
    assert (after.header.step, after.header.num_updates, after.header.best_loss) == (1, 0, math.inf)
    assert after.header.tokenizer["kind"] == "byte-bpe"
    assert all(np.array_equal(w, before.weights[name]) for name, w in after.weights.items())
    changed(saved, lambda m, t: [m.pop("llama.rope.freq_base"), m.pop("llama.attention.head_count_kv"), k_heads(t)])
    model = llama_gguf.read(saved).header.config.model
    assert (model.rope_theta, model.num_kv_heads) == (1e4, 4)
    changed(saved, lambda m, t: [m.pop(key) for key in list(m) if key.startswith("tokenizer.")])
    assert llama_gguf.read(saved).header.tokenizer is None


def k_heads(tensors) -> None:
    """Gives every query head keys and values of its own."""
    for name in [name for name in tensors if "attn_k" in name or "attn_v" in name]:
        tensors[name] = np.concatenate([tensors[name]] * 2)


def key(name, value):
    return lambda metadata, tensors: metadata.update({name: value})


def tensor(name, shape=(8,)):
    return lambda metadata, tensors: tensors.update({name: np.ones(shape, np.float32)})


REFUSED = [
    (key("general.architecture", "qwen2"), "architecture 'qwen2'; only 'llama' is read"),
    (lambda m, t: m.pop("llama.block_count"), "llama.block_count is 'None'"),
    (key("llama.embedding_length", np.float32(32)), "llama.embedding_length is '32.0'; expected a number"),
    (key("llama.feed_forward_length", np.array([88, 88], np.int32)), "feed_forward_length is .*equal for all layers"),
    (key("llama.attention.head_count", np.uint32(5)), "n_head=5 does not divide"),
    (key("llama.context_length", np.uint32(1 << 31)), "model.block_size=2147483648"),
    (key("llama.attention.layer_norm_rms_epsilon", np.float32(np.nan)), "model.norm_eps"),
    (key("llama.rope.scaling.type", "linear"), "llama.rope.scaling.type is linear; only none is supported"),
    (key("llama.rope.scaling.factor", np.float32(4)), "llama.rope.scaling.factor is not supported"),
    (key("llama.attention.key_length", np.uint32(64)), "attention.key_length is 64; only 8 is supported"),
    (key("llama.rope.dimension_count", np.uint32(4)), "rope.dimension_count is 4; only 8 is supported"),
    (key("llama.attention.sliding_window", np.uint32(32)), "attention.sliding_window is 32; only 0 is supported"),
    (key("llama.expert_count", np.uint32(8)), "expert_count is 8; only 0 is supported"),
    (key("llama.vocab_size", np.uint32(9)), "vocab_size is 9; only 278 is supported"),
    (key("llama.logit_scale", np.float32(2)), "llama.logit_scale is not supported"),
    (tensor("rope_freqs.weight"), "rope_freqs.weight is not supported .factors of the rotary frequencies"),
    (tensor("blk.0.attn_q.bias"), "blk.0.attn_q.bias is not supported .a bias"),
    (tensor("blk.0.ffn_gate_exps.weight"), "ffn_gate_exps.weight is not supported .experts"),
    (tensor("blk.0.attn_q_norm.weight"), "attn_q_norm.weight is not supported .a norm"),
    (tensor("blk.9.attn_q.weight"), "blk.9.attn_q.weight is not supported"),
    (lambda m, t: t.pop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight is missing"),
    (lambda m, t: t.pop("token_embd.weight"), "has a vocabulary of 0 ids"),
    (tensor("blk.1.ffn_up.weight", (32, 88)), r"ffn_up.weight has the shape \(32, 88\), expected \(88, 32\)"),
    (lambda m, t: t["output_norm.weight"].fill(np.inf), "final_norm.weight holds values that are not finite"),
]


@pytest.mark.parametrize("change, words", REFUSED)
def test_other_networks_are_refused_by_name(saved, change, words):
    llama_gguf.write(saved, checkpoint_of("byte-bpe"))
    changed(saved, without_own_keys)
    changed(saved, change)
    with pytest.raises(BadFile, match=words) as caught:
        llama_gguf.read(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (key("llama.rope.freq_base", np.float32(777)), "remove these keys"),
        (lambda m, t: m.pop("mlxgpt.rope_scale"), "are not three float64 values"),
        (key("mlxgpt.rope_scale", "4"), "are not three float64 values"),
        (key("mlxgpt.best_loss", "low"), "a number as text"),
        (key("mlxgpt.step", np.int64(-1)), "two counts"),
        (key("tokenizer.ggml.eos_token_id", np.uint32(0)), "eos_token_id is not that of mlxgpt.tokenizer"),
        (key("mlxgpt.tokenizer", "{}"), "tokenizer"),
    ],
)
def test_our_keys_must_agree_with_those_of_llama_cpp(saved, change, words):
    changed(saved, change)
    with pytest.raises(BadFile, match=words):
        llama_gguf.read(saved)


@pytest.fixture(scope="module", params=TOKENIZERS)
def good(request, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    llama_gguf.write(path, checkpoint_of(request.param, LLAMA | {"ffn_dim": 8}))
    return path.read_bytes()


def test_mutated_files_are_refused_in_one_line(tmp_path, good):
    require_one_line(good, llama_gguf.read, tmp_path / "mutated", 100)


@pytest.mark.slow
def test_twenty_thousand_mutated_files_are_refused_in_one_line(tmp_path, good):
    """That is their number for all kinds of tokenizers together."""
    require_one_line(good, llama_gguf.read, tmp_path / "mutated", 7_000)


# -- commands -------------------------------------------------------------------------------------------------------


def test_every_command_takes_a_gguf_file(saved, tmp_path):
    """convert, inspect, generate, eval, and training that starts from its weights."""
    (tmp_path / "text.txt").write_text(TEXT * 20)
    for arguments in (
        ["convert", saved, "best.safetensors"],
        ["convert", "best.safetensors", "back.gguf"],
        ["inspect", saved],
        ["generate", saved, "--prompt", "the cat", "--max-tokens", "5"],
        ["eval", saved, "--corpus", "text.txt"],
        ["train", "--fine-tune", saved, "--corpus", "text.txt", "--iters", "2", "--batch", "2", "--out", "run"],
    ):
        done = mlxgpt(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert "does not contain the vocabulary" not in done.stderr
    assert store.load(tmp_path / "best.safetensors").header.config.model.architecture() == (
        checkpoint_of().header.config.model.architecture()
    )
    assert (tmp_path / "back.gguf").read_bytes() == saved.read_bytes()
