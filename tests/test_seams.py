"""Tests of the seams with implementations that the package does not know: those of toys.py.

A seam is a typing.Protocol with a table of implementations, see docs/architecture.md. The fixture `toys` adds a row to
each table of the network. test_laws.py has the laws that all rows keep.
"""

import numpy as np
import pytest
from constants import TINY
from devices import tolerance
from networks import NETWORKS, TRAINED, blocks, shaped
from serving import serving
from toys import DecayedSum, Repeated, Squares, Twins
from training import V
from training import trainer as make_trainer

import mlx_gpt
from mlx_gpt.api import Run
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.presets import names_of, resolve
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.data.tokenizer import CharTokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.model.cost import num_params
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.mixers import MIXERS
from mlx_gpt.model.specs import Constant, Weight
from mlx_gpt.optim.optimizers import RULES, Optimizer
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone, agree
from mlx_gpt.train.saving import LATEST
from mlx_gpt.train.step import initial_state, make_step

SHAPE = {"n_embd": 24, "n_head": 3, "n_layer": 3, "block_size": 16}

pytestmark = pytest.mark.usefixtures("toys")


# -- weights describe themselves ------------------------------------------------------------------------------------


def test_specs_are_the_built_models_weights_and_each_is_in_one_group_of_every_optimizer():
    every = [param.values[0] for param in blocks(linears=TRAINED)] + NETWORKS
    for config in [*map(shaped, every), *(resolve(name).model for name in names_of("presets"))]:
        specs, weights = GPT.specs(config, 11), GPT(config, 11).weights()
        assert {k: w.shape for k, w in specs.items()} == {k: w.shape for k, w in weights.items()}, config
        assert num_params(config, 11) == sum(w.size for w in weights.values())
        for optimizer in RULES:
            groups = Optimizer(resolve(overrides={"optimizer.name": optimizer}).optimizer, roles_of(config, 11)).groups
            assert sorted(name for group in groups for name in group.names) == sorted(weights), config


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


# -- training -------------------------------------------------------------------------------------------------------


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
    for a, b in zip(ours, theirs, strict=True):  # NorMuon makes rounding errors larger in rows with small gradients
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-5)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-5)
    for name, w in alone["weights"].items():
        np.testing.assert_allclose(w, twins["weights"][name], atol=10 * tolerance("float32 mean"), err_msg=name)


def test_the_shipped_objective_and_group_keep_to_the_protocols(tiny_config):
    assert CrossEntropy(tiny_config).count(type("B", (), {"mask": mx.ones((2, 3))})).item() == 6
    assert (Alone().rank, Alone().size, Alone().gather(7, 0), agree(Alone(), True, False)) == (
        0,
        1,
        [[7, 0]],
        [True, False],
    )


# -- writing and serving --------------------------------------------------------------------------------------------


@pytest.fixture
def recurrent_run(small_run):
    """A network of decayed sums and attention. Decoder, slots and server know nothing of the state of a decayed sum."""
    model_config = ModelConfig(n_embd=24, n_head=3, n_layer=2, block_size=12, mixers=("decayed-sum", "attention"))
    config = resolve(overrides={f"model.{k}": v for k, v in model_config.architecture().items()})
    tokenizer = CharTokenizer("\n abcdefgh")
    model = GPT(config.model, tokenizer.vocab_size, seed=5)
    model.set_weights({k: w * 8 for k, w in model.weights().items() if w.ndim == 2})
    model.lm_head.weight[tokenizer.eos_id] = 0
    mx.eval(model.weights())
    return Run(model=model, tokenizer=tokenizer, header=Header(config=config, vocab_size=11, step=1, num_updates=1))


def test_a_recurrent_model_is_served_alone_and_among_others(recurrent_run):
    request = {"prompt": "abc", "max_tokens": 30, "temperature": 0, "seed": 1}
    with serving(recurrent_run) as served:
        alone = served.post(json=request).json()["choices"][0]["text"]
        others = {"prompt": ["b", "ab", "hg"], "max_tokens": 25, "temperature": 1.0, "seed": 3}
        many = served.post(json=others | {"prompt": ["b", "abc", "hg"], "temperature": 0}).json()["choices"]
    written = "".join(mlx_gpt.generate(recurrent_run, "abc", max_tokens=8, temperature=0))
    assert alone.startswith(written) and len(alone) == 30
    assert many[1]["text"] == alone[:25]
