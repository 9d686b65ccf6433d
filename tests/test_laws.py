"""Laws that every network keeps: all combinations of the rows of MIXERS, FFNS, LINEARS and RESIDUALS, toys included.

The laws of inference also hold for the networks with each option. tests/formats/test_formats.py has the law that a
network is exported or refused by name.
"""

import itertools
import math

import numpy as np
import pytest
from constants import TINY
from devices import cpu_only, tolerance
from networks import NETWORKS, SHAPE, TRAINED, blocks, likeliest, names, network, plain_greedy, shaped
from training import V, assert_same_state, timeless, tokens
from training import trainer as make_trainer

from mlx_gpt import rng
from mlx_gpt.checkpoint import store
from mlx_gpt.config.presets import resolve
from mlx_gpt.config.schema import SpeedConfig
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import decode
from mlx_gpt.generation.sampling import Sampling, to_draw
from mlx_gpt.generation.slots import Slots
from mlx_gpt.model.cost import state_bytes
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.state import leaves, put_row, take_rows
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.objective import CrossEntropy, cross_entropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.reports import StepReport
from mlx_gpt.train.saving import LATEST
from mlx_gpt.train.step import initial_state, make_step

NETWORK = tolerance("float32 network")
T = SHAPE["block_size"]
GREEDY = Sampling(temperature=0)

pytestmark = pytest.mark.usefixtures("toys")
every = pytest.mark.parametrize("settings", [*blocks(), *NETWORKS], ids=names)
each = pytest.mark.parametrize("settings", blocks(together=1))  # for laws that take longer
trained = pytest.mark.parametrize("settings", blocks(linears=TRAINED))
each_trained = pytest.mark.parametrize("settings", blocks(together=1, linears=TRAINED))


def drawn(*shape, seed=0):
    """Random ids."""
    return np.random.default_rng(seed).integers(0, 11, shape)


def close(found, expected):
    """Asserts that logits differ by rounding only."""
    expected = np.array(expected)
    np.testing.assert_allclose(found, expected, atol=2 * NETWORK * np.abs(expected).max(), rtol=0)


# -- inference ------------------------------------------------------------------------------------------------------


@every
def test_a_token_changes_no_logit_before_it(settings):
    model, ids = network(settings), drawn(1, T)
    before = np.array(model(ids))
    for t in (0, 1, 7, T - 1):
        changed = ids.copy()
        changed[0, t] = (changed[0, t] + 1) % 11
        after = np.array(model(changed))
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert np.abs(after[0, t:] - before[0, t:]).max() > 1e-3


@every
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_reading_a_prompt_and_then_token_by_token_gives_the_full_pass(settings, padded):
    """Padding at the end of the prompt changes nothing of what is read later."""
    model, ids = network(settings), drawn(2, T)
    full = model(ids)
    for length in (1, 2, 5, T - 1):
        state, valid = model.new_state(2), mx.array([length] * 2) if padded else None
        prompt = np.pad(ids[:, :length], ((0, 0), (0, (T - length) * padded)))
        parts = [model.forward(mx.array(prompt), state=state, valid=valid)[0][:, :length]]
        for t in range(length, T):
            state = model.state_of(state.tree)
            parts.append(model.forward(mx.array(ids[:, t : t + 1]), state=state)[0])
        close(mx.concatenate(parts, axis=1), full)


@every
def test_rows_join_a_batch_and_continue_each_from_its_own_position(settings):
    model, ids, lengths = network(settings), drawn(3, T), [2, 7, 15]
    _, layers = model.new_state(3).tree
    alone = []
    for i, (row, length) in enumerate(zip(ids, lengths, strict=True)):
        state, prompt = model.new_state(1), np.pad(row[:length], (0, T - length))
        model.forward(mx.array(prompt[None]), state=state, valid=mx.array([length]))
        assert state.tree[0].tolist() == [length]
        layers = put_row(layers, state.tree[1], mx.array(i))
        alone.append(state.tree[1])
    for i, expected in enumerate(alone):
        found = take_rows(layers, mx.array([i]))
        assert all(mx.array_equal(a, b) for a, b in zip(leaves(found), leaves(expected), strict=True))
    state = model.state_of((mx.array(lengths), layers))
    found, _ = model.forward(mx.array(ids[range(3), lengths][:, None]), state=state)
    for row, length, logits in zip(ids, lengths, found, strict=True):
        close(logits[0], model(row[None])[0, length])


@every
def test_a_row_of_a_batch_is_computed_as_alone(settings):
    model, ids = network(settings), drawn(4, T)
    together = model(ids)
    for row, logits in zip(ids, together, strict=True):
        close(model(row[None])[0], logits)


@every
def test_bytes_of_the_state_are_known_beforehand(settings):
    model = network(settings)
    state = model.new_state(5)
    assert state_bytes(model.config, 5) == sum(a.nbytes for layer in state.layers for a in leaves(layer.arrays)) > 0


@every
def test_layers_for_inference_compute_the_same(settings):
    model, ids = network(settings), drawn(2, T)
    close(model.packed()(ids), model(ids))
    assert (model.packed() is model) == (model.config.linear == "dense")


@every
def test_half_precision_computes_nearly_the_same(settings):
    model, ids = network(settings), mx.array(drawn(2, T))
    exact, (found, _) = model(ids), model.apply(model.cast(model.weights(), "bfloat16"), ids)
    assert found.dtype == mx.bfloat16
    assert mx.abs(found - exact).mean() < 0.05 * mx.abs(exact).max()


@each
def test_decoding_writes_what_the_full_pass_says_past_the_window_too(settings):
    model = network(settings)
    for length in (1, 5, T - 1, T, T + 1, 40):
        prompt = drawn(length).tolist()
        assert list(itertools.islice(decode(model, prompt, GREEDY), 20)) == plain_greedy(model, prompt, 20)


@each
def test_sequences_side_by_side_are_each_as_alone(settings):
    model = network(settings)
    for rows in (2, 5):
        prompts = drawn(rows, 5)
        for row, prompt in zip(likeliest(model, prompts, 8), prompts, strict=True):
            np.testing.assert_array_equal(row, plain_greedy(model, prompt.tolist(), 8))


@each
def test_a_text_in_a_slot_is_the_same_beside_others(settings):
    """Also in a slot that another text has used, and if another one joins while it is written."""
    slots, how, count = Slots(network(settings), 4), Sampling(temperature=1.0), 8
    prompts = {slot: drawn(length, seed=slot) for slot, length in ((1, 9), (2, 3), (3, 5))}

    def idle(slot):
        return to_draw([(how if i == slot else GREEDY, 7, 0) for i in range(slots.num_rows)])

    def write(slot, others):
        """The ids of a text in a slot. Of the others, each joins after another number of steps."""
        slots.clear()
        slots.arrange([], 4 if others else 1, slots.room_for(T))
        for other in others:
            slots.read(other, drawn(6, seed=9), to_draw([(how, 1, 0)]))
        found = [slots.read(slot, prompts[2], to_draw([(how, 7, 0)]))[0].item()]
        at = [0] * slots.num_rows
        at[slot] = len(prompts[2])
        for index in range(1, count):
            if index in others:
                slots.read(index, prompts[index], to_draw([(how, 3, 0)]))
                at[index] = len(prompts[index])
            draws = to_draw([(how, 7 if i == slot else 3, index) for i in range(slots.num_rows)])
            found.append(slots.step(at, draws)[0][slot].item())
            at = [a + 1 if a else 0 for a in at]
        return found

    assert write(0, []) == write(2, [1, 3]) == write(0, [1, 2, 3])


# -- training -------------------------------------------------------------------------------------------------------


@trained
def test_the_initial_loss_is_that_of_a_uniform_guess(settings):
    size, draw = 67, np.random.default_rng(0)
    ids = mx.array(draw.integers(0, size, (8, T + 1)))
    logits, _ = GPT(shaped(settings), size).forward(ids[:, :-1])
    assert cross_entropy(logits, ids[:, 1:]).mean().item() == pytest.approx(math.log(size), rel=0.02)


@trained
def test_dropout_masks_follow_their_key_and_the_row_of_the_batch(settings):
    model, ids, key = network(settings | {"dropout": 0.3}), mx.array(drawn(4, T)), rng.key(0, rng.DROPOUT, 1)

    def logits(*rows, key=key):
        return model.forward(ids[slice(*rows)], dropout_key=key, first_row=rows[0])[0]

    whole = logits(0, 4)
    assert mx.array_equal(whole, logits(0, 4))
    close(mx.concatenate([logits(0, 1), logits(1, 4)]), whole)
    for other in (rng.key(1, rng.DROPOUT, 1), rng.key(0, rng.DROPOUT, 2), None):
        assert mx.abs(logits(0, 4, key=other) - whole).max() > 1e-2


@trained
def test_recomputing_blocks_gives_the_same_gradients_and_every_weight_has_one(settings):
    first, ids, key = network(settings | {"dropout": 0.1}), mx.array(drawn(3, T + 1)), rng.key(0, rng.DROPOUT, 1)
    found = []
    for remat in (False, True):
        model = GPT(first.config, 11, speed=SpeedConfig(remat=remat))

        def loss(weights, model=model):
            logits, aux = model.apply(weights, ids[:, :-1], dropout_key=key)
            return cross_entropy(logits, ids[:, 1:]).mean() + sum(aux.values(), mx.array(0.0))

        found.append(mx.grad(loss)(first.weights()))
    for name, gradient in found[0].items():
        scale = mx.abs(gradient).max().item()
        np.testing.assert_allclose(found[1][name], gradient, atol=NETWORK * scale, rtol=0, err_msg=name)
        # The first and the last mixed residual streams are mixed without effect: they start equal, and end as a mean.
        outer = name in ("layers.0.attn_residual.mix", f"layers.{first.config.n_layer - 1}.mlp_residual.mix")
        assert scale > 0 or outer, name


@cpu_only("memory of other devices is counted in larger pieces")
@each_trained
def test_steps_leave_nothing_in_memory(settings):
    config = resolve(overrides={f"model.{k}": v for k, v in shaped(settings).architecture().items()})
    model, optimizer = GPT(config.model, V, 1), Optimizer(config.optimizer, roles_of(config.model, V))
    windows, used = Windows(tokens(300, 0), T), []
    step = make_step(model, optimizer, CrossEntropy(config), windows.gather, Alone(), config)
    state, spans = initial_state(model.weights(), optimizer), windows.read(windows.draw(0, rng.WINDOWS, 0, 4))
    for i in range(12):
        state, output = step(state, mx.array(1e-3), mx.array(i, dtype=mx.uint32), *map(mx.array, spans))
        mx.eval(state, output)
        used.append(mx.get_active_memory())
    assert max(used[-3:]) < 1.05 * max(used[:3]), used  # MLX reuses buffers that are a little larger


@each_trained
def test_every_part_learns_resumes_bit_for_bit_and_keeps_its_aux(settings, tmp_path):
    settings = {f"model.{k}": v for k, v in shaped(settings).architecture().items()} | {"train.iters": 8}
    settings |= {"train.batch_size": 4, "train.eval_every": 4, "train.sample_every": 0}
    config = resolve(overrides=TINY | settings)
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
