"""The compiled step and the evaluator: traced once, exact under accumulation, safe against non-finite numbers."""

import functools
import itertools

import numpy as np
import pytest
from covering import covering
from devices import cpu_only, tolerance

from mlx_gpt import rng
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Batch, Windows
from mlx_gpt.device.lanes import LANE_TOKENS, MAX_PARTS, divide
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.evaluate import Evaluator
from mlx_gpt.train.objective import CrossEntropy, cross_entropy, entropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.step import initial_state, make_step

V = 11


def tokens(lengths=(300,), seed=0):
    ids = np.random.default_rng(seed).integers(0, V, sum(lengths)).astype(np.uint8)
    return Tokens.of(ids, lengths)


def index(i):
    return mx.array(i, dtype=mx.uint32)


def spans(config, windows, i):
    drawn = windows.draw(config.train.seed, rng.WINDOWS, i, config.train.sequences_per_step)
    return [mx.array(a) for a in windows.read(drawn)]


def make(config):
    """The model and its optimizer."""
    model = GPT(config.model, V, seed=1, speed=config.speed)
    return model, Optimizer(config.optimizer, roles_of(config.model, V))


def run(config, steps=3, windows=None, lrs=None):
    """State, losses and model after a few steps."""
    model, optimizer = make(config)
    windows = windows or Windows(tokens(), config.model.block_size)
    step = make_step(model, optimizer, CrossEntropy(config), windows.gather, Alone(), config)
    state, outputs = initial_state(model.weights(), optimizer), []
    for i in range(steps):
        state, output = step(state, mx.array((lrs or [1e-3] * steps)[i]), index(i), *spans(config, windows, i))
        outputs.append(output)
    return state, outputs, model


def assert_close(a, b, atol):
    for name, w in a["weights"].items():
        np.testing.assert_allclose(w, b["weights"][name], atol=atol, rtol=0, err_msg=name)


@cpu_only("lanes")
def test_the_step_is_traced_once(tiny_config, monkeypatch):
    """However many parts the batch is cut into, each is traced once, whatever the rate."""
    calls, forward = [], GPT.forward
    monkeypatch.setattr(GPT, "forward", lambda *a, **k: calls.append(k["first_row"]) or forward(*a, **k))
    run(tiny_config.replace({"speed.lanes": 2}), steps=6, lrs=[1e-3, 2e-3, 3e-3, 0.0, 1e-4, 1e-5])
    assert calls == [0, 2]


@pytest.mark.parametrize("lanes, remat", covering([1, 3, 4, 7], [False, True], together=1))
def test_lanes_and_remat_change_nothing_dropout_included(tiny_config, lanes, remat):
    windows = Windows(tokens((90, 20, 5, 70, 2, 100)), 64)
    config = tiny_config.replace({"train.batch_size": 7, "model.dropout": 0.2, "speed.lanes": 2})
    other = config.replace({"speed.lanes": lanes, "speed.remat": remat})
    (whole, losses, _), (split, split_losses, _) = run(config, windows=windows), run(other, windows=windows)
    for a, b in zip(losses, split_losses, strict=True):
        assert a.loss.item() == pytest.approx(b.loss.item(), abs=tolerance("float32 mean"))
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=tolerance("float32 network"))
    assert_close(whole, split, atol=tolerance("float32 updates"))


def peak_of_a_step(config) -> int:
    (model, optimizer), windows = make(config), Windows(tokens(), 64)
    step = make_step(model, optimizer, CrossEntropy(config), windows.gather, Alone(), config)
    state = initial_state(model.weights(), optimizer)
    mx.eval(state)
    for i in range(2):
        mx.reset_peak_memory()
        state, output = step(state, mx.array(1e-3), index(i), *spans(config, windows, i))
        mx.eval(state, output)
    return mx.get_peak_memory() - mx.get_active_memory()


@cpu_only("the bounds were measured there")
def test_remat_and_accumulation_take_less_memory(tiny_config):
    changes = {"model.n_layer": 6, "train.batch_size": 32, "speed.lanes": 1, "optimizer.name": "adamw"}
    whole = tiny_config.replace(changes)
    parts = whole.replace({"train.batch_size": 8, "train.grad_accum_steps": 4})
    peaks = [
        peak_of_a_step(config.replace({"speed.remat": remat})) for config in (whole, parts) for remat in (False, True)
    ]
    assert peaks[1] < 0.5 * peaks[0] and peaks[2] < 0.3 * peaks[0] and peaks[3] < 0.6 * peaks[2], peaks


@cpu_only("lanes")
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 16])
@pytest.mark.parametrize("rows, most", [(1, 1), (5, 5), (16, 16), (64, 64), (40, 20), (7, 3), (9, 1), (2000, 2000)])
def test_a_batch_is_divided_whole_and_within_bounds(rows, most, num_lanes):
    parts = divide(rows, most, list(range(num_lanes)), block_size=256)
    assert [i for first, end, _ in parts for i in range(first, end)] == list(range(rows))
    sizes = [end - first for first, end, _ in parts]
    assert max(sizes) <= max(-(-most // num_lanes), 1) and max(sizes) <= max(LANE_TOKENS // 256, -(-rows // MAX_PARTS))
    assert {lane for *_, lane in parts} == set(range(min(num_lanes, len(parts))))


def test_a_step_lowers_the_loss_on_what_it_saw(tiny_config):
    _, outputs, _ = run(tiny_config, steps=30, windows=Windows(tokens((70,)), 64))
    assert outputs[-1].loss.item() < outputs[0].loss.item() - 0.1


@pytest.mark.parametrize("parts, lengths", covering([2, 4], [(300,), (90, 20, 5, 70, 2, 100)], together=1))
def test_accumulation_is_the_big_batch_dropout_included(tiny_config, parts, lengths):
    windows = Windows(tokens(lengths), 64)
    big = tiny_config.replace({"train.batch_size": 8, "model.dropout": 0.2})
    small = big.replace({"train.batch_size": 8 // parts, "train.grad_accum_steps": parts})
    (whole, losses, _), (split, split_losses, _) = run(big, windows=windows), run(small, windows=windows)
    for a, b in zip(losses, split_losses, strict=True):
        assert a.loss.item() == pytest.approx(b.loss.item(), abs=tolerance("float32 mean"))
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=tolerance("float32 network"))
    assert_close(whole, split, atol=tolerance("float32 updates"))


def test_masked_targets_weigh_nothing(tiny_config):
    """A short document's padding changes neither loss nor update, whatever lies behind its end."""
    one, other = tokens((20, 100)), tokens((20, 100))
    other.ids.host[20:] = (other.ids.host[20:] + 1) % V
    config = tiny_config.replace({"model.dropout": 0.0})
    results = []
    for data in (one, other):
        windows = Windows(data, 64)
        batch = windows.batch(np.array([[0] * 4, [20] * 4], np.int32))
        windows.gather = functools.partial(lambda batch, *spans: batch, batch)
        results.append(run(config, windows=windows))
    assert [o.loss.item() for o in results[0][1]] == [o.loss.item() for o in results[1][1]]
    assert_close(results[0][0], results[1][0], atol=tolerance("exact"))


def test_a_step_that_is_not_finite_leaves_everything_as_it_was(tiny_config):
    tiny_config = tiny_config.replace({"optimizer.ema_decay": 0.9})
    (model, optimizer), windows = make(tiny_config), Windows(tokens(), 64)
    step = make_step(model, optimizer, CrossEntropy(tiny_config), windows.gather, Alone(), tiny_config)
    drawn = spans(tiny_config, windows, 0)
    state, _ = step(initial_state(model.weights(), optimizer), mx.array(1e-3), index(0), *drawn)
    poisoned = state | {"weights": state["weights"] | {"wpe.weight": state["weights"]["wpe.weight"] * float("inf")}}
    after, output = step(poisoned, mx.array(1e-3), index(1), *drawn)
    assert not output.finite.item()
    assert after["optimizer"]["num_updates"].item() == 1
    for part in ("m", "v", "ema"):
        for name, moment in after["optimizer"][part].items():
            assert mx.array_equal(moment, state["optimizer"][part][name]), name
    assert mx.array_equal(after["weights"]["wte.weight"], state["weights"]["wte.weight"])


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_computes_the_same_and_keeps_float32_weights(tiny_config, dtype, tolerance):
    exact, losses, _ = run(tiny_config)
    half, half_losses, _ = run(tiny_config.replace({"train.dtype": dtype}))
    assert all(w.dtype == mx.float32 for w in half["weights"].values())
    assert all(m.dtype == mx.float32 for m in half["optimizer"]["v"].values())
    for a, b in zip(losses, half_losses, strict=True):
        assert b.finite.item()
        assert a.loss.item() == pytest.approx(b.loss.item(), abs=tolerance)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=0.1)
    assert_close(exact, half, atol=5e-3)


def test_cross_entropy_is_its_definition():
    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(2, 3, V)) * 5, draw.integers(0, V, (2, 3))
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    given, ids = mx.array(logits.astype(np.float32)), mx.array(targets)
    np.testing.assert_allclose(cross_entropy(given, ids), expected, atol=tolerance("float32 loss"))
    # Its gradient is softmax less one at the target.
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradient = mx.grad(lambda x: cross_entropy(x, ids).sum())(given)
    np.testing.assert_allclose(gradient, softmax - np.eye(V)[targets], atol=tolerance("float32 loss"))
    huge = mx.array([[[1e30, -1e30, 0.0]]])
    assert cross_entropy(huge, mx.array([[0]])).item() == 0 and cross_entropy(
        huge, mx.array([[2]])
    ).item() == pytest.approx(1e30)


def test_entropy_is_its_definition():
    logits = np.random.default_rng(0).normal(size=(2, 3, V)) * 5
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected, given = -(p * np.log(p)).sum(-1), mx.array(logits.astype(np.float32))
    np.testing.assert_allclose(entropy(given), expected, atol=tolerance("float32 loss"))
    gradient = mx.grad(lambda x: entropy(x).sum())(given)
    np.testing.assert_allclose(gradient, -p * (np.log(p) + expected[..., None]), atol=tolerance("float32 loss"))
    assert entropy(mx.zeros((1, 1, V))).item() == pytest.approx(np.log(V))
    assert entropy(mx.array([[[1e30, -1e30, 0.0]]])).item() == 0
    published = mx.array([[[2.0, 0, 0, 0]]])
    ce, h = cross_entropy(published, mx.array([[0]])).item(), entropy(published).item()
    assert (ce, h, ce - 0.01 * h) == pytest.approx((0.340753, 0.918284, 0.331570), abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_loss_is_the_cross_entropy_minus_the_weighted_entropy(tiny_config, weight):
    """The weight 0 does not change the gradient by a bit."""
    config = tiny_config.replace({"model.dropout": 0.0, "train.entropy_weight": weight})
    model, windows = GPT(config.model, V, seed=1), Windows(tokens((100, 30)), config.model.block_size)
    batch, objective = windows.batch(windows.draw(1, "s", 2, 5)), CrossEntropy(config)

    def plain(weights):
        logits, _ = model.apply(weights, batch.inputs)
        loss, h = ((f * batch.mask).sum() for f in (cross_entropy(logits, batch.targets), entropy(logits)))
        return loss - weight * h if weight else loss, {"ce": loss, "H": h, "H-CE": h - loss}

    def ours(weights):
        return objective(*model.apply(weights, batch.inputs), batch)

    (expected, sums), gradients = mx.value_and_grad(plain)(model.weights())
    (found, reported), found_gradients = mx.value_and_grad(ours)(model.weights())
    assert {name: value.item() for name, value in reported.items()} == {k: v.item() for k, v in sums.items()}
    assert found.item() == expected.item()
    assert all(mx.array_equal(found_gradients[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("lengths, size", [((300,), 4), ((90, 20, 5, 70, 2, 1, 100), 3)])
def test_evaluation_is_the_mean_over_the_split(tiny_config, lengths, size):
    """Against one window at a time, in float64, documents apart."""
    T, data = tiny_config.model.block_size, tokens(lengths)
    model, windows = GPT(tiny_config.model, V, seed=1), Windows(data, T)
    token_bytes = np.arange(V, dtype=np.int32)
    result = Evaluator(model, windows, token_bytes, "float32")(model.weights(), windows.sweep(size))
    nats, uncertainty, count, size_bytes = 0.0, 0.0, 0, 0
    for begin, end in itertools.pairwise(np.cumsum([0, *lengths])):
        for start in range(begin, end - 1, T):
            part = data.ids.host[start : min(start + T + 1, end)].astype(np.int32)
            logits = np.array(model(part[None, :-1])[0], np.float64)
            p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            uncertainty -= (p * np.log(p)).sum()
            nats -= sum(row[t] - np.log(np.exp(row).sum()) for row, t in zip(logits, part[1:], strict=True))
            count, size_bytes = count + len(part) - 1, size_bytes + token_bytes[part[1:]].sum()
    assert result.tokens == count
    assert result.loss == pytest.approx(nats / count, abs=tolerance("float32 loss"))
    assert result.entropy == pytest.approx(uncertainty / count, abs=tolerance("float32 loss"))
    assert result.ppl == pytest.approx(np.exp(nats / count), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / np.log(2) / size_bytes, rel=1e-5)


def test_evaluation_is_deterministic_and_can_be_stopped(tiny_config):
    model, windows = GPT(tiny_config.model, V, seed=1), Windows(tokens(), 64)
    evaluator, batches = Evaluator(model, windows, np.ones(V, np.int32), "float32"), windows.sweep(2)
    assert evaluator(model.weights(), batches) == evaluator(model.weights(), batches)
    assert evaluator(model.weights(), batches, lambda: True) is None


def test_batches_are_data(tiny_config):
    windows = Windows(tokens(), 64)
    batch = windows.batch(windows.draw(1, "s", 2, 5))
    assert isinstance(batch, Batch) and batch.inputs.shape == batch.targets.shape == batch.mask.shape == (5, 64)
    assert mx.array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
