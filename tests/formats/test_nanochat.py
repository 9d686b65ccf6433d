"""Files of nanochat-rs-ternary: read as their specification says, written so that they come back, refused by name.

The files are made here from the specification, without the writer.
"""

import dataclasses
import struct

import numpy as np
import pytest
from commands import mlxgpt
from hostile import require_one_line
from networks import LLAMA
from references import numpy_gpt

import mlx_gpt
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.formats import FORMATS, format_of, nanochat
from mlx_gpt.formats.mhc import gains, ordinary, read_units, write_units
from mlx_gpt.model.gpt import GPT, shapes_of
from mlx_gpt.model.packing import as_dense, as_packed
from mlx_gpt.run.loading import read_checkpoint

DIM, FFN, LAYERS, HEADS, KV, VOCAB = 128, 256, 2, 4, 2, 11
U32, F32, BOOL, STRING = 4, 6, 7, 8
KEYS = {
    "general.architecture": (STRING, "nanochat-ternary"),
    "nanochat.dim": (U32, DIM),
    "nanochat.n_layers": (U32, LAYERS),
    "nanochat.n_heads": (U32, HEADS),
    "nanochat.n_kv_heads": (U32, KV),
    "nanochat.vocab_size": (U32, VOCAB),
    "nanochat.max_seq_len": (U32, 32),
    "nanochat.group_size": (U32, 128),
    "nanochat.mhc_n_streams": (U32, 1),
    "nanochat.weight_tied": (U32, 1),
    "nanochat.rope_theta": (F32, 5e5),
    "nanochat.ffn_mult": (F32, 2.0),
    "nanochat.n_experts": (U32, 0),
    "nanochat.gated_attention": (BOOL, False),
}
SHAPES = {
    "attention.wq": (DIM, DIM),
    "attention.wk": (DIM // 2, DIM),
    "attention.wv": (DIM // 2, DIM),
    "attention.wo": (DIM, DIM),
    "ffn.w_gate": (FFN, DIM),
    "ffn.w_up": (FFN, DIM),
    "ffn.w_down": (DIM, FFN),
}
OURS = {"attention.": "attn.", "ffn.w_gate": "mlp.fc_gate", "ffn.w_up": "mlp.fc1", "ffn.w_down": "mlp.fc2"}


def ternary(rows, columns, group=128, seed=0):
    """Trits, and scales that vary widely and that float16 does not hold."""
    draw = np.random.default_rng(seed)
    trits = draw.integers(-1, 2, (rows, columns))
    return trits, draw.uniform(0.01, 0.3, (rows, columns // group)).astype(np.float32)


def q1_58(trits, scales) -> bytes:
    """Four trits in a byte, the first in the lowest bits: -1 is 11, 0 is 00, 1 is 01. Then the scales."""
    codes = {-1: 3, 0: 0, 1: 1}
    flat = [codes[t] for t in trits.reshape(-1).tolist()]
    packed = bytes(flat[i] | flat[i + 1] << 2 | flat[i + 2] << 4 | flat[i + 3] << 6 for i in range(0, len(flat), 4))
    return packed + scales.astype("<f4").tobytes()


def tensors_of(group=128, tied=True, layers=LAYERS):
    """The tensors of a file: shape, number of the type, bytes. And the matrices by our names."""
    draw = np.random.default_rng(5)
    embedding = draw.normal(size=(VOCAB, DIM)).astype("<f4")
    found = {"tok_embed.weight": ((VOCAB, DIM), 0, embedding.tobytes())}
    values = {"wte": embedding}
    for i in range(layers):
        for j, (name, shape) in enumerate(SHAPES.items()):
            trits, scales = ternary(*shape, group, seed=10 * i + j)
            found[f"blocks.{i}.{name}.weight"] = (shape, 100, q1_58(trits, scales))
            ours = next(name.replace(theirs, own) for theirs, own in OURS.items() if name.startswith(theirs))
            values[f"layers.{i}.{ours}"] = trits * np.repeat(scales, group, axis=1)
        for theirs, ours in (("norm_attn", "attn_norm"), ("norm_ffn", "mlp_norm")):
            gain = draw.uniform(0.5, 2, DIM).astype("<f4")
            found[f"blocks.{i}.{theirs}.weight"] = ((DIM,), 0, gain.tobytes())
            values[f"layers.{i}.{ours}"] = gain
    gain = draw.uniform(0.5, 2, DIM).astype("<f4")
    found["norm_final.weight"], values["final_norm"] = ((DIM,), 0, gain.tobytes()), gain
    if not tied:
        trits, scales = ternary(VOCAB, DIM, group, seed=99)
        found["lm_head.weight"] = ((VOCAB, DIM), 100, q1_58(trits, scales))
        values["lm_head"] = trits * np.repeat(scales, group, axis=1)
    return found, {f"{name}.weight": value.astype(np.float32) for name, value in values.items()}


def text(string) -> bytes:
    return struct.pack("<Q", len(string.encode())) + string.encode()


def bytes_of(tensors, keys=KEYS, version=3, magic=b"GUGF") -> bytes:
    values = {U32: "<I", F32: "<f", BOOL: "<?"}
    head = magic + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, (kind, value) in keys.items():
        data = text(value) if kind == STRING else struct.pack(values[kind], value)
        head += text(key) + struct.pack("<I", kind) + data
    offset, body = 0, b""
    for name, (shape, kind, data) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        body += data + bytes(-len(data) % 32)
        offset = len(body)
    return head + bytes(-len(head) % 32) + body


@pytest.fixture
def saved(tmp_path):
    def save(keys=None, tensors=None, **options):
        path = tmp_path / "model.gguf"
        path.write_bytes(bytes_of(tensors or tensors_of(**options)[0], KEYS | (keys or {})))
        return path

    return save


# -- reading --------------------------------------------------------------------------------------------------------


def test_the_published_bytes_of_a_matrix():
    """Trits (-1, 0, 1, 1) are the byte 0x53. The code 10 is 0."""
    assert q1_58(np.array([-1, 0, 1, 1]), np.zeros(0)) == b"\x53"
    assert nanochat.LANES.pack(np.array([[-1, 0, 1, 1]]).astype(np.uint8) & 3).tobytes() == b"\x53"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group", [64, 128])
def test_a_file_is_read_to_the_bit(saved, group, tied):
    keys = {"nanochat.group_size": (U32, group), "nanochat.weight_tied": (U32, int(tied))}
    path = saved(keys, group=group, tied=tied)
    assert format_of(path) is FORMATS["nanochat"]
    after, (_, values) = read_checkpoint(path), tensors_of(group, tied)
    model = after.header.config.model
    assert (model.linear, model.ternary_group, model.ternary_activations) == ("ternary-packed", str(group), "int8")
    assert (model.n_embd, model.ffn_width, model.num_kv_heads, model.norm_eps) == (DIM, FFN, KV, 1e-6)
    assert (model.rope_base, model.tied_head, after.header.vocab_size) == (5e5, tied, VOCAB)
    found = as_dense(model, after.weights)[1]
    assert found.keys() == values.keys()
    assert all(np.array_equal(w, values[name]) for name, w in found.items())


@pytest.mark.parametrize("alias", ["nanochat.model.group_size", "model.group_size"])
def test_settings_that_may_be_absent_or_differ(saved, alias):
    path = saved({"nanochat.rope_scale": (F32, 8.0), "nanochat.rope_theta": (F32, 1e4)})
    model = read_checkpoint(path).header.config.model
    assert (model.rope_scale, model.rope_theta) == (8.0, 1e4)
    keys = {k: v for k, v in KEYS.items() if k not in ("nanochat.max_seq_len", "nanochat.rope_theta")}
    keys[alias] = keys.pop("nanochat.group_size")
    path.write_bytes(bytes_of(tensors_of()[0], keys, version=2))
    model = read_checkpoint(path).header.config.model
    assert (model.block_size, model.rope_theta, model.ternary_group) == (2048, 1e4, "128")


def test_the_code_without_a_meaning_is_zero(saved):
    tensors, _ = tensors_of()
    shape, kind, data = tensors["blocks.1.attention.wv.weight"]
    tensors["blocks.1.attention.wv.weight"] = (shape, kind, b"\xaa" + data[1:])
    after = read_checkpoint(saved(tensors=tensors))
    assert not as_dense(after.header.config.model, after.weights)[1]["layers.1.attn.wv.weight"][0, :4].any()


def test_embeddings_in_float16_are_read(saved):
    tensors, values = tensors_of()
    half = values["wte.weight"].astype("<f2")
    tensors["tok_embed.weight"] = ((VOCAB, DIM), 1, half.tobytes())
    assert np.array_equal(read_checkpoint(saved(tensors=tensors)).weights["wte.weight"], half.astype(np.float32))


def test_logits_are_those_of_the_equations(saved):
    """In NumPy, without the rounding of activations, which the reference leaves out."""
    after, (_, values) = read_checkpoint(saved()), tensors_of()
    model = dataclasses.replace(after.header.config.model, ternary_activations="float")
    tokens = np.array([[1, 2, 3, 4, 5, 6, 7]])
    run = mlx_gpt.run.loading.to_run(
        "model.gguf",
        dataclasses.replace(after, header=dataclasses.replace(after.header, config=Config(model=model))),
    )
    expected = numpy_gpt(values, tokens[0], dataclasses.replace(model, linear="dense"))
    found = np.array(run.model(tokens)[0])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


REFUSED = [
    ({"nanochat.deltanet_ratio_pct": (U32, 20)}, "deltanet_ratio_pct=20 is not supported .DeltaNet"),
    ({"nanochat.n_experts": (U32, 8)}, "n_experts=8 is not supported .experts"),
    ({"nanochat.use_shared_expert": (BOOL, True)}, "use_shared_expert=True is not supported .experts"),
    ({"nanochat.gated_attention": (BOOL, True)}, "gated_attention=True is not supported .gates"),
    ({"nanochat.loop.loop_count": (U32, 4)}, "loop.loop_count=4 is not supported .loops"),
    ({"nanochat.wavefield.ratio_pct": (U32, 50)}, "wavefield.ratio_pct=50 is not supported .wavefield"),
    ({"nanochat.new_key": (U32, 1)}, "nanochat.new_key=1 is not supported .unknown"),
    ({"nanoChat.max_seq_len": (U32, 16)}, "nanoChat.max_seq_len=16 is not supported .unknown"),
    ({"nanochat.group_size": (U32, 32)}, "group_size is 32; only 64 and 128 are supported"),
    ({"nanochat.group_size": (STRING, "64")}, "group_size is 64; only"),
    ({"nanochat.weight_tied": (STRING, "yes")}, "weight_tied says otherwise than its tensors"),
    ({"nanochat.dim": (F32, 128.0)}, "nanochat.dim is '128.0'; expected a number"),
    ({"nanochat.n_heads": (U32, 3)}, "n_head=3 does not divide"),
    ({"nanochat.n_layers": (U32, 1)}, "blocks.1.attention.wq.weight is not supported .unknown"),
    ({"nanochat.n_layers": (U32, 3)}, "blocks.2.norm_attn.weight is missing"),
    ({"nanochat.n_kv_heads": (U32, 4)}, r"wk.weight is Q1_58 \(64, 128\), expected Q1_58 \(128, 128\)"),
    ({"nanochat.vocab_size": (U32, 12)}, "tok_embed.weight has 11 rows"),
    ({"nanochat.weight_tied": (U32, 0)}, "weight_tied says otherwise than its tensors"),
    ({"general.architecture": (STRING, "llama")}, "architecture 'llama'; only 'nanochat-ternary' is read"),
]


@pytest.mark.parametrize("keys, words", REFUSED, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_other_networks_are_refused_by_name(saved, keys, words):
    path = saved(keys)
    with pytest.raises(BadFile, match=words) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, what",
    [
        *(("blocks.0.attention.w_beta.weight", "DeltaNet"), ("blocks.0.ffn.router.weight", "experts")),
        *(("blocks.0.ffn.experts.0.w_up.weight", "experts"), ("shared_loop.exit_gate.weight", "loops")),
        *(("wavefield.gate.weight", "wavefield"), ("engram.key.weight", "engram"), ("other", "unknown")),
    ],
)
def test_other_tensors_are_refused_by_name(saved, name, what):
    tensors, _ = tensors_of()
    path = saved(tensors=tensors | {name: ((4,), 0, bytes(16))})
    with pytest.raises(BadFile, match=f"{name} is not supported .{what}"):
        read_checkpoint(path)


def test_matrices_of_another_type_are_refused(saved):
    tensors, values = tensors_of()
    data = values["layers.0.attn.wq.weight"].tobytes()
    path = saved(tensors=tensors | {"blocks.0.attention.wq.weight": ((DIM, DIM), 0, data)})
    with pytest.raises(BadFile, match=r"wq.weight is F32 \(128, 128\), expected Q1_58"):
        read_checkpoint(path)
    path = saved(tensors=tensors | {"tok_embed.weight": ((VOCAB, DIM), 7, data)})
    with pytest.raises(BadFile, match="tok_embed.weight has the type 7, but 0, 1, 100 are allowed"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "counts, words",
    [((100_001, 0), "100,001 tensors, but at most 100,000"), ((0, 100_001), "100,001 metadata entries, but at most")],
)
def test_limits_hold_before_anything_is_allocated(tmp_path, counts, words):
    (tmp_path / "a").write_bytes(b"GUGF" + struct.pack("<IQQ", 3, *counts) + bytes(20 << 20))
    with pytest.raises(BadFile, match=words):
        read_checkpoint(tmp_path / "a")
    key = text("general.architecture") + struct.pack("<IQ", STRING, 17 << 20)
    (tmp_path / "a").write_bytes(b"GUGF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(18 << 20))
    with pytest.raises(BadFile, match="needs 17,825,792 bytes, but at most 16,777,216 are allowed"):
        read_checkpoint(tmp_path / "a")


def test_mutated_files_are_refused_in_one_line(tmp_path):
    tensors, _ = tensors_of(layers=1)
    good = bytes_of(tensors, KEYS | {"nanochat.n_layers": (U32, 1)})
    require_one_line(good, nanochat.read, tmp_path / "mutated", 100)


# -- residual streams -----------------------------------------------------------------------------------------------


def mhc_bytes(units, version=2, streams=2, magic=0x6D484321) -> bytes:
    """Units are (logits of mixing, pre, pre_bias, post, post_bias), each of the last four for all streams."""
    data = struct.pack("<4I", magic, version, len(units), streams)
    return data + b"".join(np.concatenate([np.atleast_1d(x) for x in u]).astype("<f4").tobytes() for u in units)


def units_of(count=2 * LAYERS):
    """Units that are equal for both streams. Logit and bias of the streams may be divided differently."""
    return [(0.7, (0.25, 0.5), (0.5, 0.25), (i / 4, i / 2), (i / 2, i / 4)) for i in range(count)]


def gain(unit) -> float:
    return 2 / (1 + np.exp(-unit[3][0] - unit[4][0]))


STREAMS = {"nanochat.mhc_n_streams": (U32, 2)}


@pytest.mark.parametrize("version", [1, 2])
def test_the_gains_of_equal_units_are_in_the_scales(saved, tmp_path, version):
    """In float32: the products of the scales of wo and fc2 with the gains. All other weights are the same."""
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units_of(), version))
    plain, folded = read_checkpoint(saved()), read_checkpoint(saved(STREAMS), mhc=tmp_path / "a.mhc")
    for name, w in plain.weights.items():
        expected, layer = w, int(name.split(".")[1]) if name.startswith("layers.") else 0
        for part, index in (("attn.wo.scales", 0), ("mlp.fc2.scales", 1)):
            if name.endswith(part):
                expected = (w.astype(np.float64) * gain(units_of()[2 * layer + index])).astype(np.float32)
        assert np.array_equal(folded.weights[name], expected), name
        assert np.array_equal(w, expected) or name.endswith(("wo.scales", "fc2.scales"))


def test_equal_units_are_what_the_two_streams_compute(saved, tmp_path):
    """The equations of the streams, with one linear sub-layer, against one residual connection with the gain."""
    draw, unit = np.random.default_rng(0), units_of()[3]
    x, f = draw.normal(size=8), draw.normal(size=(8, 8))
    alpha = 1 / (1 + np.exp(-unit[0]))
    mix = np.array([[alpha, 1 - alpha], [1 - alpha, alpha]])
    pre = 1 / (1 + np.exp(-np.add(unit[1], unit[2])))
    post = 2 / (1 + np.exp(-np.add(unit[3], unit[4])))
    streams, plain = np.stack([x, x]), x
    for _ in range(3):
        u = pre @ streams
        y = f @ (u / np.sqrt((u**2).mean()))
        streams = mix @ (streams + post[:, None] * y)
        plain = plain + gain(unit) * (f @ (plain / np.sqrt((plain**2).mean())))
    np.testing.assert_allclose(streams.mean(0), plain, atol=1e-10)
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units_of(4)))
    found = gains(read_units(tmp_path / "a.mhc", 2, 2))
    np.testing.assert_allclose(found.reshape(-1), [gain(u) for u in units_of(4)], rtol=1e-12)


def other(index, field, value):
    units = [list(unit) for unit in units_of()]
    units[index][field] = value
    return mhc_bytes(units)


@pytest.mark.parametrize(
    "data, words",
    [
        (other(0, 0, np.nan), "unit 0 .attention of layer 0. has a number that is not finite"),
        (other(0, 2, (np.inf, np.inf)), "unit 0 .* has a number that is not finite"),
        (other(3, 0, -20.5), "unit 3 .* an alpha_logit beyond 20"),
        (mhc_bytes(units_of(), streams=4), "version 2 and 4 streams; the model has 2 streams"),
        (mhc_bytes(units_of(), version=3), "version 3 and 2 streams"),
        (mhc_bytes(units_of(6)), "has 6 units in 232 bytes; a model of 2 layers has 4 units in 160 bytes"),
        (mhc_bytes(units_of())[:-1], "has 4 units in 159 bytes"),
        (mhc_bytes(units_of()) + b"\0", "has 4 units in 161 bytes"),
        (mhc_bytes(units_of(), magic=1), "is not an mHC file"),
        (b"", "is not an mHC file"),
    ],
)
def test_units_that_are_damaged_or_of_another_model_are_refused_by_name(saved, tmp_path, data, words):
    (tmp_path / "a.mhc").write_bytes(data)
    with pytest.raises(BadFile, match=words) as caught:
        nanochat.read(saved(STREAMS), tmp_path / "a.mhc")
    assert "a.mhc" in str(caught.value) and "\n" not in str(caught.value)


def test_streams_without_their_file_are_refused_and_the_other_way_round(saved, tmp_path):
    path = saved(STREAMS)
    with pytest.raises(UserError, match="in another file; name it with: mlxgpt convert .* --mhc FILE"):
        read_checkpoint(path)
    write_units(tmp_path / "a.mhc", ordinary(LAYERS))
    path = saved()
    with pytest.raises(UserError, match="has one residual stream and needs no mHC file"):
        read_checkpoint(path, mhc=tmp_path / "a.mhc")


def mixed_units(streams, count=2 * LAYERS):
    """Units that mix the streams. Biases are 0, so that files with them are written again byte for byte."""
    draw, zeros = np.random.default_rng(streams), np.zeros(streams)
    return [(draw.normal(size={2: 1, 4: 24}[streams]), *[draw.normal(size=streams), zeros] * 2) for _ in range(count)]


@pytest.mark.parametrize("streams", [2, 4])
def test_units_that_differ_between_streams_are_mixed_streams(saved, tmp_path, streams):
    """With the sums of logits and biases; the files are written again byte for byte."""
    units = mixed_units(streams)
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units, streams=streams))
    path = saved({"nanochat.mhc_n_streams": (U32, streams)})
    found = read_checkpoint(path, mhc=tmp_path / "a.mhc")
    model = found.header.config.model
    assert (model.residual, model.n_stream) == ("mhc", streams)
    for i, (mix, pre, _, post, _) in enumerate(units):
        unit = f"layers.{i // 2}.{('attn', 'mlp')[i % 2]}_residual"
        for name, numbers in (("mix", mix), ("pre", pre), ("post", post)):
            assert np.array_equal(found.weights[f"{unit}.{name}"], numbers.astype(np.float32)), (unit, name)
    nanochat.write(tmp_path / "b.gguf", found, tmp_path / "b.mhc")
    assert (tmp_path / "b.mhc").read_bytes() == (tmp_path / "a.mhc").read_bytes()
    again = nanochat.read(tmp_path / "b.gguf", tmp_path / "b.mhc")
    assert again.header.config == found.header.config and again.weights.keys() == found.weights.keys()
    assert all(np.array_equal(w, again.weights[name]) for name, w in found.weights.items())
    shifted = [(mix, pre - 0.5, pre * 0 + 0.5, post, bias) for mix, pre, _, post, bias in units]
    (tmp_path / "c.mhc").write_bytes(mhc_bytes(shifted, streams=streams))
    for name, w in read_checkpoint(path, mhc=tmp_path / "c.mhc").weights.items():
        np.testing.assert_allclose(w, found.weights[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("streams", [2, 4])
def test_mixed_streams_that_are_equal_compute_what_the_gains_compute(saved, tmp_path, streams):
    """Except for the epsilon of the norms. The same file as mixed streams, and folded into the scales."""
    mix = np.linspace(-1, 1, {2: 1, 4: 24}[streams])
    units = [(mix, *(np.full(streams, x) for x in (3.0, 0.25, i / 4, 0.125))) for i in range(2 * LAYERS)]
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units, streams=streams))
    path = saved({"nanochat.mhc_n_streams": (U32, streams)})
    folded = read_checkpoint(path, mhc=tmp_path / "a.mhc")
    assert folded.header.config.model.residual == "add"
    units[0][1][0] += 1e-6  # now the streams are not equal, but nearly so
    (tmp_path / "b.mhc").write_bytes(mhc_bytes(units, streams=streams))
    logits = []
    for found in (folded, read_checkpoint(path, mhc=tmp_path / "b.mhc")):
        network = GPT(dataclasses.replace(found.header.config.model, ternary_activations="float"), VOCAB)
        network.load_weights([(name, mx.array(w)) for name, w in found.weights.items()])
        logits.append(np.array(network(mx.arange(VOCAB)[None])))
    assert network.layers[0].attn_residual.pre.shape == (streams,)
    np.testing.assert_allclose(*logits, atol=1e-4 * np.abs(logits[0]).max())


@pytest.mark.parametrize("streams", [0, 3, 5, 2**31])
def test_other_numbers_of_streams_are_refused(saved, tmp_path, streams):
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units_of()))
    with pytest.raises(BadFile, match=f"mhc_n_streams is {streams}; expected 1, 2 or 4"):
        nanochat.read(saved({"nanochat.mhc_n_streams": (U32, streams)}), tmp_path / "a.mhc")


# -- writing --------------------------------------------------------------------------------------------------------

INT8 = {"linear": "ternary", "ternary_activations": "int8", "norm_eps": 1e-6, "ffn_dim": FFN}


def checkpoint_of(**settings) -> Checkpoint:
    network = LLAMA | INT8 | {"ternary_group": "128", "dropout": 0.1} | settings
    model = ModelConfig(n_embd=DIM, n_head=HEADS, n_layer=LAYERS, block_size=32, **network)
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=s).astype(np.float32) for name, s in shapes_of(model, VOCAB).items()}
    header = Header(config=Config(model=model), vocab_size=VOCAB, step=1, num_updates=0)
    return Checkpoint(header=header, weights=weights, optimizer={})


@pytest.mark.parametrize("streams", [False, True], ids=["one stream", "two streams"])
@pytest.mark.parametrize("settings", [{}, {"ternary_group": "64"}, {"tied_head": False, "n_kv_head": 0}])
def test_a_network_comes_back_bit_for_bit_and_its_file_byte_for_byte(tmp_path, settings, streams):
    before, mhc = checkpoint_of(**settings), tmp_path / "a.mhc" if streams else None
    nanochat.write(tmp_path / "a.gguf", before, mhc)
    after = nanochat.read(tmp_path / "a.gguf", mhc)
    model, weights = as_packed(before.header.config.model, before.weights)
    assert after.header.config.model == model and after.weights.keys() == weights.keys()
    assert all(np.array_equal(w, weights[name]) and w.dtype == weights[name].dtype for name, w in after.weights.items())
    nanochat.write(tmp_path / "b.gguf", after, tmp_path / "b.mhc" if streams else None)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    if streams:
        assert mhc.read_bytes() == mhc_bytes([(0, (0, 0), (0, 0), (0, 0), (0, 0))] * 2 * LAYERS)


def test_the_file_has_the_bytes_of_the_specification(saved, tmp_path):
    """A file that is made here is written again, with the keys and the tensors in the order of the writer."""
    nanochat.write(tmp_path / "again.gguf", nanochat.read(saved()))
    tensors, _ = tensors_of()
    parts = ("norm_attn", *list(SHAPES)[:4], "norm_ffn", *list(SHAPES)[4:])
    names = ["tok_embed", "norm_final", *(f"blocks.{i}.{part}" for i in range(LAYERS) for part in parts)]
    order = ("dim", "n_layers", "n_heads", "n_kv_heads", "max_seq_len", "vocab_size", "group_size", "mhc_n_streams")
    order = [
        "general.architecture",
        *(f"nanochat.{name}" for name in (*order, "weight_tied", "rope_theta", "ffn_mult")),
    ]
    expected = bytes_of({f"{n}.weight": tensors[f"{n}.weight"] for n in names}, {key: KEYS[key] for key in order})
    assert (tmp_path / "again.gguf").read_bytes() == expected


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"linear": "dense"}, 'model.linear="dense" instead of "ternary"'),
        ({"ternary_group": "row"}, "model.ternary_group=row instead of 64 or 128"),
        ({"ternary_activations": "float"}, 'model.ternary_activations="float" instead of "int8"'),
        ({"norm_eps": 1e-5}, "model.norm_eps=1e-05 instead of 1e-06"),
        ({"rope_theta": 12345.678901}, "model.rope_theta=12345.678901 instead of a float32"),
        (
            {"linear": "dense", "ternary_group": "row"},
            'model.linear="dense" instead of "ternary", model.ternary_group=row instead of 64 or 128; give another',
        ),
    ],
)
def test_a_network_that_the_format_cannot_hold_is_refused(tmp_path, settings, words):
    with pytest.raises(UserError, match=f"nanochat holds only Llama's ternary network, not {words}"):
        nanochat.write(tmp_path / "a.gguf", checkpoint_of(**settings))
    assert not list(tmp_path.iterdir())


def test_the_command_reads_and_writes_both_files(saved, tmp_path):
    saved(STREAMS)
    (tmp_path / "a.mhc").write_bytes(mhc_bytes(units_of()))
    (tmp_path / "text.txt").write_text("abcdefghi")
    for arguments, rc, words in (
        (("model.gguf", "x.safetensors"), 2, "in another file; name it with"),
        (("model.gguf", "a.safetensors", "--mhc", "a.mhc", "--corpus", "text.txt"), 0, "float16 may not hold exactly"),
        (("a.safetensors", "x.safetensors", "--mhc", "a.mhc"), 2, "--mhc a.mhc is for nanochat files"),
        (("a.safetensors", "b.gguf", "--format", "nanochat", "--mhc", "a.mhc"), 2, "a.mhc: already exists"),
        (("a.safetensors", "b.gguf", "--format", "nanochat", "--mhc", "b.mhc"), 0, "does not contain the tokenizer"),
        (("a.safetensors", "b.gguf"), 2, "already exists"),
        (("b.gguf", "c.safetensors", "--mhc", "b.mhc", "--corpus", "text.txt"), 0, "c.safetensors: safetensors"),
    ):
        done = mlxgpt("convert", *arguments, cwd=tmp_path)
        assert done.returncode == rc and words in done.stderr, (arguments, done.stderr)
    first, second = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in "ac")
    assert all(np.array_equal(w, second.weights[name]) for name, w in first.weights.items())
    done = mlxgpt("generate", "c.safetensors", "--prompt", "abc", "--max-tokens", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
