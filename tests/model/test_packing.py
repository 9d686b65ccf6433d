"""Packed networks: 2 bits a trit, the same function, and neither trained nor resumed."""

import dataclasses

import numpy as np
import pytest
from networks import LLAMA, TERNARY, network

import mlx_gpt
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.schema import Config, ModelConfig
from mlx_gpt.device import report
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.model import linear
from mlx_gpt.model.cost import num_params, packed_sizes
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.packing import as_dense, as_packed, trits_of
from mlx_gpt.model.ternary import dequantize, pack, quantize, unpack

TOKENS = mx.array([[1, 2, 3, 4, 5]])
GROUPS = [{"ternary_group": "tensor"}, {"ternary_group": "row"}, {"ternary_activations": "int8"}]


def built(config, weights):
    model = GPT(config, 11)
    model.set_weights({name: mx.array(w) for name, w in weights.items()})
    return model


def arrays(model):
    return {name: np.array(w) for name, w in model.weights().items()}


def test_every_byte_of_codes_unpacks_and_packs():
    trits = np.array([[a, b, c, d] for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) for d in (-1, 0, 1)])
    codes = pack(mx.array(trits))
    assert codes.shape == (81, 1) and len(set(np.array(codes).ravel().tolist())) == 81
    assert np.array_equal(unpack(codes), trits)
    assert pack(mx.array([[-1, 0, 1, 1]])).tolist() == [[0b10_10_01_00]]


@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_a_packed_network_computes_the_same_bits(settings):
    model = network(TERNARY | settings)
    weights = arrays(model)
    config, small = as_packed(model.config, weights)
    packed = built(config, small)
    assert mx.array_equal(packed(TOKENS), model(TOKENS))
    assert mx.array_equal(packed.packed()(TOKENS), model.packed()(TOKENS))
    assert num_params(config, 11) == num_params(model.config, 11)
    for (name, *ours), (_, *theirs) in zip(trits_of(model.config, weights), trits_of(config, small), strict=True):
        assert all(mx.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), name
        plain = quantize(mx.array(weights[name]), config.ternary_group)
        assert all(mx.array_equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_dense_weights_are_those_of_the_forward_pass_to_the_bit():
    model = network(TERNARY | {"ternary_norm": False})
    weights = arrays(model)
    config, dense = as_dense(model.config, weights)
    assert mx.array_equal(built(config, dense)(TOKENS), model(TOKENS)) and config.linear == "dense"
    changed = [name for name in weights if not np.array_equal(weights[name], dense[name])]
    assert len(changed) == 7 * config.n_layer
    for name in changed:
        assert np.array_equal(dense[name], dequantize(*quantize(mx.array(weights[name]), "tensor")))
    assert as_dense(config, dense) == (config, dense)


def test_a_packed_checkpoint_is_saved_and_loaded(tmp_path):
    model = network(TERNARY)
    config, weights = as_packed(model.config, arrays(model))
    header = Header(config=Config(model=config), vocab_size=11, step=1, num_updates=1)
    checkpoint, path = Checkpoint(header=header, weights=weights, optimizer={}), tmp_path / "packed.safetensors"
    store.save(path, checkpoint)
    assert mx.array_equal(mlx_gpt.load(path).model(TOKENS), model(TOKENS))
    codes = weights["layers.0.attn.wq.codes"]
    wrong = dataclasses.replace(checkpoint, weights=weights | {"layers.0.attn.wq.codes": codes.astype(np.float32)})
    store.save(path, wrong)
    with pytest.raises(BadFile, match="layers.0.attn.wq.codes is F32 .* expected U8"):
        store.load(path)


@pytest.mark.parametrize("gpu", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("group", ["tensor", "row", "64"])
def test_the_sizes_of_packed_weights_are_those_of_their_arrays(group, gpu, monkeypatch):
    """The feed-forward network's second matrix has 68 columns, which no group of 2-bit products divides."""
    monkeypatch.setattr(linear, "on_gpu", lambda: gpu)
    monkeypatch.setattr(report, "on_gpu", lambda: gpu)
    ffn_dim = 128 if group == "64" else 68
    config = ModelConfig(
        n_embd=64, n_head=4, block_size=16, **LLAMA, linear="ternary", ternary_group=group, ffn_dim=ffn_dim
    )
    model, sizes = GPT(config, 11), packed_sizes(config, 11)
    _, weights = as_packed(config, arrays(model))
    used = sum(w.nbytes for w in model.packed().weights().values())
    assert sizes["float_bytes"] == sum(w.nbytes for w in model.weights().values())
    assert sizes["packed_bytes"] == sum(w.nbytes for w in weights.values())
    assert used == sizes["packed_gpu_bytes" if gpu else "float_bytes"]
    assert report.device_report()["ternary"] == ("2-bit products" if gpu else "unpacked to float32")


def test_only_ternary_networks_are_packed():
    model = network({})
    with pytest.raises(UserError, match="model.linear=ternary can be packed; this one has model.linear=dense"):
        as_packed(model.config, arrays(model))
