"""Tests of the seams with implementations that the package does not know: those of toys.py.

A seam is a typing.Protocol with a table of implementations, see docs/architecture.md. The fixture `toys` adds a row to
each table of the network.
"""

import itertools

import numpy as np
import pytest
from constants import TINY
from devices import tolerance
from networks import likeliest
from serving import serving
from toys import Counted, DecayedSum, Halves, Repeated, Squares, Twins, TwoStreams
from training import V, assert_same_state, timeless
from training import trainer as make_trainer

import mlx_gpt
from mlx_gpt.api import Run
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.presets import names_of, resolve
from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.model.cost import num_params, state_bytes
from mlx_gpt.model.ffn import FFNS
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.linear import LINEARS
from mlx_gpt.model.mixers import MIXERS
from mlx_gpt.model.residual import RESIDUALS
from mlx_gpt.model.specs import Constant, Weight
from mlx_gpt.model.state import leaves, put_row, take_rows
from mlx_gpt.optim.optimizers import RULES, Optimizer
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.reports import StepReport
from mlx_gpt.train.saving import LATEST
from mlx_gpt.train.step import initial_state, make_step

NETWORK = tolerance("float32 network")

# Setting of [model] -> (table of the seam, name of the new row, the toy).
TOYS = {
    "mixers": (MIXERS, "decayed-sum", DecayedSum),
    "ffn": (FFNS, "counted", Counted),
    "linear": (LINEARS, "halves", Halves),
    "residual": (RESIDUALS, "two-streams", TwoStreams),
}
SHAPE = {"n_embd": 24, "n_head": 3, "n_layer": 3, "block_size": 16}
# Networks with each toy alone, with a toy mixer and attention in turns, and with all toys.
NETWORKS = [
    {"mixers": ("decayed-sum",)},
    {"mixers": ("decayed-sum", "attention")},
    {"ffn": "counted"},
    {"linear": "halves"},
    {"residual": "two-streams"},
    {"mixers": ("decayed-sum", "attention"), "ffn": "counted", "linear": "halves", "residual": "two-streams"},
]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Adds the toys to the tables, for each test of this file."""
    for table, name, toy in TOYS.values():
        monkeypatch.setitem(table, name, toy)


@pytest.fixture(params=NETWORKS, ids=lambda n: "+".join(n))
def network(request):
    return request.param


def strong(model):
    """Multiplies the matrices of a model by 8, so that every part changes the output by far more than rounding."""
    model.set_weights({k: w * 8 if w.ndim == 2 else w for k, w in model.weights().items()})
    mx.eval(model.weights())
    return model


# -- weights describe themselves ------------------------------------------------------------------------------------


def settings_of_every_slot():
    """Yields the settings of each preset, as {"preset": name}, and all combinations of the options of the network."""
    yield from ({"preset": name} for name in names_of("presets"))
    slots = {
        "positions": ("learned", "rotary"),
        "norm_weights": (False, True),
        "final_norm": (False, True),
        "tied_head": (False, True),
        "mixers": (("attention",), ("decayed-sum",), ("attention", "decayed-sum")),
        "ffn": ("relu2", "swiglu", "counted"),
        "linear": ("dense", "halves"),
        "residual": ("add", "two-streams"),
    }
    for values in itertools.product(*slots.values()):
        yield dict(zip(slots, values, strict=True))


def test_specs_are_the_built_models_weights_and_each_is_in_one_group_of_every_optimizer():
    for settings in settings_of_every_slot():
        name = settings.get("preset")
        config = resolve(name).model if name else ModelConfig(n_embd=8, n_head=2, n_layer=2, block_size=8, **settings)
        specs, weights = GPT.specs(config, 11), GPT(config, 11).weights()
        assert {k: w.shape for k, w in specs.items()} == {k: w.shape for k, w in weights.items()}, settings
        assert num_params(config, 11) == sum(w.size for w in weights.values())
        for optimizer in RULES:
            groups = Optimizer(resolve(overrides={"optimizer.name": optimizer}).optimizer, roles_of(config, 11)).groups
            assert sorted(name for group in groups for name in group.names) == sorted(weights), settings


def test_a_weight_without_a_role_or_without_a_spec_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="role"):
        Weight((1,), Constant(1.0))
    with pytest.raises(UserError, match="matrx"):
        Weight((1, 1), Constant(1.0), "matrx")

    class Forgotten(DecayedSum):
        @staticmethod
        def specs(config):
            return {k: w for k, w in DecayedSum.specs(config).items() if k != "decay"}

    monkeypatch.setitem(MIXERS, "forgotten", Forgotten)
    with pytest.raises(ValueError, match="layers.0.attn.decay"):
        GPT(ModelConfig(**SHAPE, mixers=("forgotten",)), 11)


@pytest.mark.parametrize(
    "setting, value", [("mixers", ("atention",)), ("ffn", "relu3"), ("linear", "x"), ("residual", "ad")]
)
def test_a_part_that_does_not_exist_is_named_when_the_model_is_built(setting, value):
    with pytest.raises(UserError, match=f"unknown .* model.{setting}="):
        GPT(ModelConfig(**SHAPE, **{setting: value}), 11)


# -- the network ----------------------------------------------------------------------------------------------------


def test_a_token_changes_no_logit_before_it(network):
    model = strong(GPT(ModelConfig(**SHAPE, **network), 11, seed=3))
    tokens = np.random.default_rng(1).integers(0, 11, (1, 16))
    before = np.array(model(tokens))
    for t in (0, 7, 15):
        changed = tokens.copy()
        changed[0, t] = (changed[0, t] + 1) % 11
        after = np.array(model(changed))
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert np.abs(after[0, t:] - before[0, t:]).max() > 1e-3


@pytest.mark.parametrize("prefill", [1, 5, 15])
def test_reading_in_pieces_padded_and_token_by_token_gives_the_full_pass(network, prefill):
    """Padding at the end of a prompt must not change the logits of the tokens that are read later."""
    model = strong(GPT(ModelConfig(**SHAPE, **network), 11, seed=3))
    tokens = np.random.default_rng(2).integers(0, 11, (2, 16))
    full, state = np.array(model(tokens)), model.new_state(2)
    padded = np.pad(tokens[:, :prefill], ((0, 0), (0, 16 - prefill)))
    parts = [model.forward(mx.array(padded), state=state, valid=mx.array([prefill] * 2))[0][:, :prefill]]
    for t in range(prefill, 16):
        state = model.state_of(state.tree)
        parts.append(model.forward(mx.array(tokens[:, t : t + 1]), state=state)[0])
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, atol=2 * NETWORK * np.abs(full).max(), rtol=0)


def test_rows_join_and_leave_a_batch(network):
    model = strong(GPT(ModelConfig(**SHAPE, **network), 11, seed=3))
    tokens, lengths = np.random.default_rng(4).integers(0, 11, (3, 16)), [2, 7, 15]
    _, layers = model.new_state(3).tree
    alone = []
    for i, (row, length) in enumerate(zip(tokens, lengths, strict=True)):
        state = model.new_state(1)
        model.forward(mx.array(row[None, :length]), state=state)
        alone.append(state.tree)
        layers = [put_row(a, b, mx.array(i)) for a, b in zip(layers, state.tree[1], strict=True)]
    for i, (_, arrays) in enumerate(alone):
        for a, b in zip(layers, arrays, strict=True):
            assert all(
                mx.array_equal(x, y) for x, y in zip(*map(leaves, (take_rows(a, mx.array([i])), b)), strict=True)
            )
    found, _ = model.forward(
        mx.array(tokens[range(3), lengths][:, None]), state=model.state_of((mx.array(lengths), layers))
    )
    for row, length, logits in zip(tokens, lengths, np.array(found), strict=True):
        expected = np.array(model(row[None]))[0, length]
        np.testing.assert_allclose(logits[0], expected, atol=2 * NETWORK * np.abs(expected).max(), rtol=0)


def test_bytes_of_the_state_are_known_beforehand(network):
    config = ModelConfig(**SHAPE, **network)
    state = GPT(config, 11).new_state(5)
    assert state_bytes(config, 5) == sum(a.nbytes for layer in state.layers for a in leaves(layer.arrays)) > 0


def test_packed_layers_decode_as_the_trained_ones(network):
    model = strong(GPT(ModelConfig(**SHAPE, **network), 11, seed=3))
    packed = model.packed()
    assert (packed is model) == ("linear" not in network)
    tokens = mx.array(np.random.default_rng(2).integers(0, 11, (2, 16)))
    np.testing.assert_allclose(packed(tokens), model(tokens), rtol=NETWORK, atol=NETWORK)
    found = list(itertools.islice(decode(model, [3, 4], Sampling(temperature=0)), 10))
    for i in range(10):
        assert mx.argmax(model([[3, 4, *found[:i]]])[0, -1]).item() == found[i]


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remat", [False, True])
def test_every_part_learns_resumes_bit_for_bit_and_keeps_its_aux(network, tmp_path, remat):
    settings = {f"model.{k}": v for k, v in network.items()} | {"train.iters": 8, "speed.remat": remat}
    config = resolve(
        overrides=TINY | settings | {"train.batch_size": 4, "train.eval_every": 4, "train.sample_every": 0}
    )
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    reports = list(make_trainer(tmp_path / "whole", config).run())
    first, seen = make_trainer(tmp_path / "parts", config), []
    for report in first.run():
        seen.append(report)
        if isinstance(report, StepReport) and report.step == 3:
            first.stop()
    seen += make_trainer(tmp_path / "parts", config, store.load(tmp_path / "parts" / LATEST)).run()
    assert timeless(seen) == timeless(reports)
    final = store.load(tmp_path / "whole" / LATEST)
    assert_same_state(store.load(tmp_path / "parts" / LATEST), final)
    before = GPT(config.model, V, config.train.seed).weights()
    still = {name for name, w in final.weights.items() if np.array_equal(w, before[name])}
    assert not still, still


def test_a_checkpoint_of_a_part_that_is_gone_is_refused_by_name(tmp_path, monkeypatch):
    config = resolve(overrides=TINY | {"model.mixers": ("decayed-sum",), "train.iters": 1, "train.batch_size": 2})
    list(make_trainer(tmp_path, config).run())
    monkeypatch.delitem(MIXERS, "decayed-sum")
    with pytest.raises(BadFile, match="decayed-sum"):
        store.load(tmp_path / LATEST)


def steps_of(config, objective, gather, group, arrays, count=3):
    """Makes `count` updates on the same arrays. Returns the last state, and the output of each step."""
    model = GPT(config.model, V, 1, config.speed)
    optimizer = Optimizer(config.optimizer, roles_of(config.model, V))
    step, state, outputs = make_step(model, optimizer, objective, gather, group, config), None, []
    state = initial_state(model.weights(), optimizer)
    for i in range(count):
        state, output = step(state, mx.array(1e-2), mx.array(i, dtype=mx.uint32), *arrays)
        outputs.append(output)
    return state, outputs


@pytest.mark.parametrize("lanes, accum", [(1, 1), (2, 1), (1, 2)])
def test_an_objective_and_a_source_of_ones_own(tiny_config, lanes, accum):
    """Loss and metrics are means over the whole batch, the loss includes the auxiliary outputs, and it decreases."""
    changes = {"model.ffn": "counted", "model.dropout": 0.0, "speed.lanes": lanes, "train.batch_size": 4 // accum}
    config = tiny_config.replace(changes | {"train.grad_accum_steps": accum})
    source = Repeated(np.random.default_rng(0).integers(2, V, (6, 16)).astype(np.int32), 4)
    arrays = [mx.array(a) for a in source.next(0, {})]
    _, outputs = steps_of(config, Squares(config.train), source.gather, Alone(), arrays, count=20)
    model = GPT(config.model, V, 1)
    logits, aux = model.forward(arrays[0])
    squares = mx.square(logits[..., 0] - arrays[0] / 10).mean().item()
    assert outputs[0].metrics["squares"].item() == pytest.approx(squares, rel=1e-4)
    assert set(aux) == {"square"}
    assert outputs[0].loss.item() == pytest.approx(squares + 0.1 * aux["square"].item(), rel=1e-3)
    assert outputs[-1].loss.item() < 0.5 * outputs[0].loss.item()


def test_a_source_continues_where_it_stood():
    rows = np.arange(60).reshape(6, 10)
    source, other = Repeated(rows, 2), Repeated(rows, 2)
    for step in range(3):
        source.next(step, {})
    other.seek(source.position)
    np.testing.assert_array_equal(source.next(3, {})[0], other.next(3, {})[0])


def test_a_group_whose_other_member_holds_the_same_rows_trains_as_one_alone(tiny_config):
    config = tiny_config.replace({"model.dropout": 0.0})
    source = Repeated(np.random.default_rng(0).integers(2, V, (6, 16)).astype(np.int32), 4)
    arrays = [mx.array(a) for a in source.next(0, {})]
    (alone, ours), (twins, theirs) = (
        steps_of(config, Squares(config.train), source.gather, g, arrays) for g in (Alone(), Twins())
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-6)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-6)
    for name, w in alone["weights"].items():
        np.testing.assert_allclose(w, twins["weights"][name], atol=tolerance("float32 mean"), err_msg=name)


def test_the_shipped_objective_and_group_keep_to_the_protocols(tiny_config):
    assert CrossEntropy(tiny_config.train).count(type("B", (), {"mask": mx.ones((2, 3))})).item() == 6
    assert (Alone().rank, Alone().size, Alone().agree(True), Alone().agree(False)) == (0, 1, True, False)


# -- writing and serving --------------------------------------------------------------------------------------------


@pytest.fixture
def recurrent_run(small_run):
    """A network of decayed sums and attention. Decoder, slots and server know nothing of the state of a decayed sum."""
    model_config = ModelConfig(n_embd=24, n_head=3, n_layer=2, block_size=12, mixers=("decayed-sum", "attention"))
    config = resolve(overrides={f"model.{k}": v for k, v in model_config.architecture().items()})
    tokenizer = CharTokenizer("\n abcdefgh")
    model = strong(GPT(config.model, tokenizer.vocab_size, seed=5, speed=SpeedConfig()))
    model.lm_head.weight[tokenizer.eos_id] = 0
    mx.eval(model.weights())
    return Run(model=model, tokenizer=tokenizer, header=Header(config=config, vocab_size=11, step=1, num_updates=1))


@pytest.mark.parametrize("length", [1, 3, 11, 12, 20])
def test_a_recurrent_model_writes_what_the_full_pass_says_past_the_window_too(recurrent_run, length):
    model, tokens = recurrent_run.model, np.random.default_rng(length).integers(2, 11, length).tolist()
    for token in itertools.islice(decode(model, tokens, Sampling(temperature=0)), 20):
        assert token == mx.argmax(model([tokens[-12:]])[0, -1]).item()
        tokens.append(token)


def test_sequences_side_by_side_are_each_as_alone(recurrent_run):
    prompts = np.random.default_rng(0).integers(2, 11, (5, 5))
    together = likeliest(recurrent_run.model, prompts, 7)
    for row, prompt in zip(together, prompts, strict=True):
        np.testing.assert_array_equal(row, likeliest(recurrent_run.model, prompt[None], 7)[0])


def test_a_recurrent_model_is_served_alone_and_among_others(recurrent_run):
    request = {"prompt": "abc", "max_tokens": 30, "temperature": 0, "seed": 1}
    with serving(recurrent_run) as served:
        alone = served.post(json=request).json()["choices"][0]["text"]
        others = {"prompt": ["b", "ab", "hg"], "max_tokens": 25, "temperature": 1.0, "seed": 3}
        many = served.post(json=others | {"prompt": ["b", "abc", "hg"], "temperature": 0}).json()["choices"]
    written = "".join(mlx_gpt.generate(recurrent_run, "abc", max_tokens=8, temperature=0))
    assert alone.startswith(written) and len(alone) == 30
    assert many[1]["text"] == alone[:25]
