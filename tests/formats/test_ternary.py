"""Ternary networks in files of other programs: the trits and the scales of the forward pass, to the bit."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from commands import mlxgpt
from ggml import rows_of
from hostile import require_one_line
from networks import LLAMA

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import gguf, llama_gguf
from mlx_gpt.formats.gguf_types import TERNARY, TYPES, encoded
from mlx_gpt.formats.ternary import Ternary
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.model.packing import as_packed
from mlx_gpt.model.ternary import dequantize, quantize
from mlx_gpt.run.loading import read_checkpoint

TOKENIZER = CharTokenizer.train(["the cat sat on the mat"])
SHAPE = {"n_embd": 256, "n_head": 4, "n_layer": 1, "block_size": 32, "ffn_dim": 512}
GROUPS = ("tensor", "row", "128", "64")


def checkpoint_of(group="tensor", **settings) -> Checkpoint:
    """Shadow weights whose scales differ from row to row."""
    model = ModelConfig(**(SHAPE | LLAMA | {"linear": "ternary", "ternary_group": group} | settings))
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(size=shape).astype(np.float32) * draw.uniform(0.01, 0.1, (shape[0], *[1] * (len(shape) - 1)))
        for name, shape in shapes_of(model, TOKENIZER.vocab_size).items()
    }
    header = Header(
        config=Config(model=model),
        vocab_size=TOKENIZER.vocab_size,
        step=7,
        num_updates=6,
        best_loss=2.5,
        tokenizer=TOKENIZER.to_dict(),
    )
    return Checkpoint(header=header, weights={k: w.astype(np.float32) for k, w in weights.items()}, optimizer={})


def is_ternary(name) -> bool:
    return ".attn.w" in name or ".mlp.fc" in name


def values_of(checkpoint) -> dict[str, np.ndarray]:
    """The weights of the forward pass: dequantize(quantize(w)) of the ternary matrices."""
    group = checkpoint.header.config.model.ternary_group
    return {
        name: np.array(dequantize(*quantize(mx.array(w), group))) if is_ternary(name) else w
        for name, w in checkpoint.weights.items()
    }


# -- the types of GGUF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
def test_a_block_has_ggmls_bytes_and_comes_back(tmp_path, kind):
    matrix, data = rows_of(kind)
    assert encoded("x", matrix, kind) == data and len(data) == 6 * TYPES[kind][2]
    gguf.write(tmp_path / "a.gguf", {}, {"x": matrix}, {"x": kind})
    [entry] = gguf.read_header(tmp_path / "a.gguf")[1].values()
    assert (entry.dtype, entry.shape) == (kind, matrix.shape)
    with open(tmp_path / "a.gguf", "rb") as file:
        back = gguf.read_ternary(file, "x", entry)
    assert np.array_equal(back.trits, matrix.trits) and np.array_equal(back.scales, matrix.scales)


def test_a_scale_that_float16_does_not_hold_is_refused():
    matrix = Ternary(trits=np.ones((1, 64), np.int8), scales=np.array([[0.1]], np.float32))
    with pytest.raises(
        UserError, match="x has scales that float16 cannot hold exactly, and Q2_0 .* give --gguf-type F32"
    ):
        encoded("x", matrix, "Q2_0")
    assert encoded("x", dataclasses.replace(matrix, scales=np.array([[0.125]], np.float32)), "Q2_0")


# -- GGUF files of networks -----------------------------------------------------------------------------------------

POSSIBLE = [
    *((group, kind) for group in ("tensor", "row") for kind in TERNARY),
    *((group, kind) for group in ("128", "64") for kind in ("Q2_0", "Q4_0")),
]


@pytest.mark.parametrize("packed", [False, True], ids=["shadow", "packed"])
@pytest.mark.parametrize("group, kind", POSSIBLE)
def test_trits_and_scales_come_back_to_the_bit(tmp_path, group, kind, packed):
    """Also from packed matrices, with the settings and the progress, and then byte for byte."""
    before = checkpoint_of(group, ternary_activations="int8")
    model, weights = as_packed(before.header.config.model, before.weights)
    header = dataclasses.replace(before.header, config=Config(model=model))
    expected = Checkpoint(header=header, weights=weights, optimizer={})
    llama_gguf.write(tmp_path / "a.gguf", expected if packed else before, kind)
    after = llama_gguf.read(tmp_path / "a.gguf")
    assert after.header == header and after.weights.keys() == weights.keys()
    for name, w in after.weights.items():
        assert w.dtype == weights[name].dtype and np.array_equal(w, weights[name]), name
    llama_gguf.write(tmp_path / "again.gguf", after, kind)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    kinds = {name: entry.dtype for name, entry in gguf.read_header(tmp_path / "a.gguf")[1].items()}
    assert kinds.pop("token_embd.weight") == "F32"
    assert all((dtype == kind) == ("norm" not in name) for name, dtype in kinds.items())


IN_FILES = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
IN_FILES |= {"fc_gate": "ffn_gate", "fc1": "ffn_up", "fc2": "ffn_down"}


@pytest.mark.parametrize("group, kind", POSSIBLE)
def test_a_file_holds_the_matrices_of_the_forward_pass_in_the_order_of_llama_cpp(tmp_path, group, kind):
    """Of each head's 64 query and key rows, the two halves take turns, and each row keeps its scales."""
    before = checkpoint_of(group)
    llama_gguf.write(tmp_path / "a.gguf", before, kind)
    entries, turns = gguf.read_header(tmp_path / "a.gguf")[1], np.arange(64).reshape(2, 32).T.reshape(-1)
    for name, w in values_of(before).items():
        if not is_ternary(name):
            continue
        theirs = f"blk.0.{IN_FILES[name.split('.')[-2]]}.weight"
        with open(tmp_path / "a.gguf", "rb") as file:
            found = gguf.read_ternary(file, theirs, entries[theirs])
        rows = np.arange(len(w))
        if theirs in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
            rows = np.concatenate([64 * head + turns for head in range(len(w) // 64)])
        assert np.array_equal(found.trits * np.repeat(found.scales, TYPES[kind][1], axis=1), w[rows]), name


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_float_types_hold_the_products(tmp_path, group, kind):
    """float16 holds the ternary matrices exactly, but not the embedding."""
    before = checkpoint_of(group)
    llama_gguf.write(tmp_path / "a.gguf", before, kind)
    after = llama_gguf.read(tmp_path / "a.gguf")
    assert after.header.config.model.linear == "dense"
    for name, w in values_of(before).items():
        assert np.array_equal(after.weights[name], w) == (kind == "F32" or name != "wte.weight"), name


DEFAULTS = [
    ("tensor", {}, "TQ2_0"),
    ("row", {}, "TQ2_0"),
    ("128", {}, "Q2_0"),
    ("64", {}, "Q2_0"),
    ("tensor", {"ffn_dim": 320}, "Q2_0"),
    ("row", {"n_embd": 96}, "Q4_0"),
    ("tensor", {"n_embd": 40, "ffn_dim": 104}, "F32"),
]


@pytest.mark.parametrize("group, sizes, kind", DEFAULTS)
def test_the_default_type_is_the_smallest_common_one_that_is_exact(tmp_path, group, sizes, kind):
    llama_gguf.write(tmp_path / "a.gguf", checkpoint_of(group, **sizes))
    metadata, entries = gguf.read_header(tmp_path / "a.gguf")
    assert entries["blk.0.ffn_down.weight"].dtype == kind
    assert metadata["general.file_type"] == {"TQ2_0": 37, "Q2_0": 41, "Q4_0": 2, "F32": 0}[kind]


@pytest.mark.parametrize(
    "group, kind, sizes, words",
    [
        (
            "128",
            "TQ2_0",
            {},
            "one scale for 256 weights, more than model.ternary_group=128; choose F32, F16, Q2_0 or Q4_0",
        ),
        ("64", "TQ1_0", {}, "TQ1_0 has one scale for 256 weights, more than model.ternary_group=64"),
        ("tensor", "TQ2_0", {"ffn_dim": 384}, "blocks of 256, which do not divide model.ffn_dim=384"),
        ("row", "Q2_0", {"n_embd": 96}, "blocks of 64, which do not divide model.n_embd=96; choose F32, F16 or Q4_0"),
        ("tensor", "Q8_0", {}, "Q8_0 would round the scales of ternary matrices"),
        ("tensor", "TQ2_0", {"ternary_norm": True}, "not model.ternary_norm=true instead of false"),
    ],
)
def test_a_type_that_would_change_the_network_is_refused(tmp_path, group, kind, sizes, words):
    with pytest.raises(UserError, match=words):
        llama_gguf.write(tmp_path / "a.gguf", checkpoint_of(group, **sizes), kind)
    assert not list(tmp_path.iterdir())


# -- GGUF files of others -------------------------------------------------------------------------------------------


def changed(path, change) -> None:
    """Writes a file again with other metadata and tensors."""
    metadata, entries = gguf.read_header(path)
    with open(path, "rb") as file:
        tensors = {
            name: (gguf.read_ternary(file, name, e) if e.dtype in TERNARY else gguf.read_tensor(file, e), e.dtype)
            for name, e in entries.items()
        }
    change(metadata, tensors)
    arrays, kinds = ({name: pair[i] for name, pair in tensors.items()} for i in (0, 1))
    gguf.write(path, metadata, arrays, kinds)


def without_own_keys(metadata, tensors) -> None:
    for key in ("mlxgpt.ternary_group", "mlxgpt.ternary_activations"):
        del metadata[key]


@pytest.mark.parametrize("group, kind", POSSIBLE)
def test_without_our_keys_the_group_is_the_largest_that_fits(tmp_path, group, kind):
    before = checkpoint_of(group)
    llama_gguf.write(tmp_path / "a.gguf", before, kind)
    changed(tmp_path / "a.gguf", without_own_keys)
    after = llama_gguf.read(tmp_path / "a.gguf")
    model, weights = as_packed(before.header.config.model, before.weights)
    assert after.header.config.model == model
    assert all(np.array_equal(w, weights[name]) for name, w in after.weights.items())


def test_scales_of_256_weights_are_read_as_scales_of_128(tmp_path):
    """No setting has groups of 256. The weights are the same."""
    llama_gguf.write(tmp_path / "a.gguf", checkpoint_of(), "TQ2_0")
    draw = np.random.default_rng(1)

    def other_scales(metadata, tensors):
        without_own_keys(metadata, tensors)
        for name, (matrix, kind) in tensors.items():
            if kind in TERNARY:
                scales = draw.uniform(0.1, 1, matrix.scales.shape).astype(np.float16).astype(np.float32)
                tensors[name] = dataclasses.replace(matrix, scales=scales), kind

    changed(tmp_path / "a.gguf", other_scales)
    after = llama_gguf.read(tmp_path / "a.gguf")
    assert after.header.config.model.ternary_group == "128"
    scales = after.weights["layers.0.mlp.fc2.scales"]
    assert scales.shape == (256, 4) and np.array_equal(scales[:, 0], scales[:, 1]) and len(np.unique(scales[0])) == 2


def one_scale_changed(metadata, tensors) -> None:
    """In Q4_0, the scale of 32 weights, which no group holds."""
    matrix, kind = tensors["blk.0.attn_q.weight"]
    scales = matrix.scales.copy()
    scales[0, 0] *= 2
    tensors["blk.0.attn_q.weight"] = dataclasses.replace(matrix, scales=scales), kind


def is_now(name, kind="F32"):
    def change(metadata, tensors):
        array = tensors[name][0]
        if kind == "F32":
            tensors[name] = np.ones(array.shape, np.float32), kind
        else:
            trits = np.zeros(array.shape, np.int8)
            tensors[name] = Ternary(trits=trits, scales=np.ones((len(trits), 1), np.float32)), kind

    return change


def key(name, value):
    return lambda metadata, tensors: metadata.update({name: value})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m, t: [without_own_keys(m, t), one_scale_changed(m, t)], "scales .* differ within 64 weights of a row"),
        (one_scale_changed, "mlxgpt.ternary_group, .* are row, float, .* does not fit its scales; remove these keys"),
        (key("mlxgpt.ternary_group", "256"), "are 256, float, which is not allowed"),
        (key("mlxgpt.ternary_group", np.array([1, 2], np.int32)), r"are \[1 2\], float, which is not allowed"),
        (key("mlxgpt.ternary_activations", "int4"), "are row, int4, which is not allowed"),
        (lambda m, t: m.pop("mlxgpt.ternary_activations"), "are row, None, which is not allowed"),
        (is_now("blk.0.ffn_up.weight"), "attn_q.weight is Q4_0, but blk.0.ffn_up.weight is F32; either all matrices"),
        (is_now("token_embd.weight", "Q4_0"), "token_embd.weight is Q4_0; only matrices of the blocks are read"),
    ],
)
def test_a_file_that_is_no_ternary_network_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "a.gguf"
    llama_gguf.write(path, checkpoint_of("row"), "Q4_0")
    changed(path, change)
    with pytest.raises(BadFile, match=words) as caught:
        llama_gguf.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, place", [("Q4_0", 2), ("Q2_0", 2), ("TQ2_0", 0)])
def test_weights_of_more_than_three_values_are_refused(tmp_path, kind, place):
    """A block of an ordinary Q4_0 file has 16 values, and the code 3 of two bits is 2."""
    path = tmp_path / "a.gguf"
    llama_gguf.write(path, checkpoint_of(), kind)
    data, entry = bytearray(path.read_bytes()), gguf.read_header(path)[1]["blk.0.attn_v.weight"]
    data[entry.first + place] = 0xFF
    path.write_bytes(data)
    with pytest.raises(BadFile, match=f"blk.0.attn_v.weight is {kind} with weights other than -1, 0 and 1 times"):
        llama_gguf.read(path)


@pytest.fixture(scope="module", params=TERNARY)
def good(request, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    size = TYPES[request.param][1]
    before = checkpoint_of(n_embd=size, ffn_dim=size, n_layer=1)
    llama_gguf.write(path, before, request.param)
    return path.read_bytes()


def test_mutated_files_are_refused_in_one_line(tmp_path, good):
    require_one_line(good, llama_gguf.read, tmp_path / "mutated", 60)


@pytest.mark.slow
def test_five_thousand_mutated_files_are_refused_in_one_line(tmp_path, good):
    require_one_line(good, llama_gguf.read, tmp_path / "mutated", 5_000)


# -- packed folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    def save(*arguments, packed=False, **settings):
        before = found = checkpoint_of(*arguments, **settings)
        if packed:
            model, weights = as_packed(before.header.config.model, before.weights)
            header = dataclasses.replace(before.header, config=Config(model=model))
            found = dataclasses.replace(before, header=header, weights=weights)
        store.save(tmp_path / "ternary.safetensors", found)
        return before

    return save


def export(folder, *arguments):
    done = mlxgpt("export", "ternary.safetensors", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("packed", [False, True], ids=["shadow", "packed"])
@pytest.mark.parametrize("group, size", [("tensor", 128), ("row", 128), ("128", 128), ("64", 64)])
def test_a_folder_for_mlx_lm_has_two_bits_for_the_matrices_of_the_blocks(tmp_path, saved, group, size, packed):
    before = saved(group, packed=packed)
    export(tmp_path, "out", "--to", "mlx-lm", "--packed")
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization"] == {"group_size": size, "bits": 2}
    found = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    assert sum(name.endswith(".scales") for name in found) == 7
    assert found["model.embed_tokens.weight"].dtype == np.float32 and not list((tmp_path / "out").glob("*.py"))
    for theirs, ours in (("self_attn.k_proj", "attn.wk"), ("mlp.down_proj", "mlp.fc2")):
        parts = [mx.array(found[f"model.layers.0.{theirs}.{part}"]) for part in ("weight", "scales", "biases")]
        assert parts[0].dtype == mx.uint32 and parts[1].dtype == parts[2].dtype == mx.float32
        value = mx.dequantize(*parts, group_size=size, bits=2)
        assert np.array_equal(value, values_of(before)[f"layers.0.{ours}.weight"])
    with pytest.raises(BadFile, match="quantized weights cannot be read; export without --quantize and --packed"):
        read_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("activations, words", [("float", "unlike in training"), ("int8", "as in training")])
def test_a_folder_for_transformers_has_four_rows_in_a_byte(tmp_path, saved, activations, words):
    before = saved(ternary_activations=activations)
    done = export(tmp_path, "out", "--packed")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["linear_class"], config["quantization_mode"]) == (
        *("bitnet", "bitlinear", "offline"),
    )
    fact = f"rounds the inputs of these matrices to 8 bits per token, {words}"
    assert fact in (tmp_path / "out/README.md").read_text() and fact in done.stderr
    found = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    for theirs, ours in (("self_attn.k_proj", "attn.wk"), ("mlp.down_proj", "mlp.fc2")):
        trits, scale = quantize(mx.array(before.weights[f"layers.0.{ours}.weight"]), "tensor")
        data = found[f"model.layers.0.{theirs}.weight"]
        assert data.dtype == np.uint8 and data.shape == (trits.shape[0] // 4, trits.shape[1])
        assert np.array_equal(np.concatenate([(data >> 2 * k & 3).astype(np.int8) - 1 for k in range(4)]), trits)
        inverse = found[f"model.layers.0.{theirs}.weight_scale"]
        assert inverse.shape == (1,) and inverse.dtype == np.float32
        assert inverse[0] == np.float32(1) / np.float32(scale.item()) and np.float16(1 / inverse[0]) == scale.item()
    assert found["model.embed_tokens.weight"].dtype == np.float32


# A network whose folders have code.
CODED = {"qk_norm": True, "n_kv_head": 0, "rope_theta": 1e4, "rope_scale": 1.0, "norm_eps": 1e-5}


@pytest.mark.parametrize(
    "group, sizes, arguments, words",
    [
        ("row", {}, (), "has one scale for a matrix, but this network has model.ternary_group=row"),
        ("tensor", {"ffn_dim": 302}, (), "rows that are a multiple of 4, but layers.0.mlp.fc1.weight has 302"),
        ("tensor", {"ffn_dim": 304}, ("--to", "mlx-lm"), "widths that are multiples of 32, but .* model.ffn_dim=304"),
        ("tensor", CODED, (), "--packed is for Llama's network, not model.qk_norm=true instead of false"),
        ("tensor", {}, ("--to", "mlx-lm", "--quantize", "4"), "--packed and --quantize 4 exclude each other"),
    ],
)
def test_a_network_that_a_packed_form_cannot_hold_is_refused(tmp_path, saved, group, sizes, arguments, words):
    saved(group, **sizes)
    done = mlxgpt("export", "ternary.safetensors", "out", "--packed", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=words):
        raise UserError(done.stderr)


def test_commands_read_a_packed_file(tmp_path, saved):
    """The logits are those of the network that was exported."""
    before = saved("128", n_embd=128, ffn_dim=128)
    export(tmp_path, "a.gguf")
    tokens = mx.array([[2, 3, 4, 5]])
    ours, theirs = (mlx_gpt.load(tmp_path / name).model(tokens) for name in ("ternary.safetensors", "a.gguf"))
    assert np.abs(np.array(ours - theirs)).max() < 1e-5 * np.abs(np.array(ours)).max()
    done = mlxgpt("convert", "a.gguf", "back.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert store.load(tmp_path / "back.safetensors").header.config.model.linear == "ternary-packed"
    assert before.header.config.model.linear == "ternary"
