"""Local steps (DiLoCo): what the average of the ranks equals, and how a run of several ranks is resumed."""

import numpy as np
import pytest
from crew import together
from toys import Descent
from training import V, assert_same_state, timeless, tokens, trainer

from mlx_gpt.checkpoint import store
from mlx_gpt.config.presets import resolve
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.gpt import GPT
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone, share
from mlx_gpt.train.reports import SaveReport
from mlx_gpt.train.rounds import make_rounds
from mlx_gpt.train.saving import LATEST
from mlx_gpt.train.step import make_step

OUTER = {"optimizer.outer_learning_rate": 0.7, "optimizer.outer_momentum": 0.9}  # those of arXiv:2311.08105


def weights_after(config, group, steps=5):
    """Makes updates by plain gradient descent, and returns the weights."""
    model, optimizer = GPT(config.model, V, 1), Descent()
    windows, rounds = Windows(tokens(800, 0), config.model.block_size), make_rounds(group, config)
    state = {"weights": model.weights(), "optimizer": rounds.restore(optimizer, model.weights(), {}, 0)}
    step = make_step(model, optimizer, CrossEntropy(config), windows.gather, rounds.inner, config)
    rows = share(group, config.train.sequences_per_step)
    for i in range(steps):
        chosen = windows.read(windows.shuffled(1, i * config.train.sequences_per_step, config.train.sequences_per_step))
        state, _ = step(state, mx.array(0.1), mx.array(i, dtype=mx.uint32), *(mx.array(a[rows]) for a in chosen))
        if rounds.end(i, steps) == i + 1:
            state = rounds.exchange(state)
    return {name: np.array(w) for name, w in state["weights"].items()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_local_steps_of_one_update_with_rate_1_are_synchronous_gradient_descent(tiny_config, ranks):
    plain = {"optimizer.clip_mode": "none", "model.dropout": 0.0}
    local = plain | {"train.sync_every": 1, "optimizer.outer_learning_rate": 1.0, "optimizer.outer_momentum": 0.0}
    whole = weights_after(tiny_config.replace(plain), Alone())
    for found in together(ranks, lambda group: weights_after(tiny_config.replace(local), group)):
        for name, w in whole.items():
            np.testing.assert_allclose(found[name], w, atol=1e-6, rtol=0, err_msg=name)
    other = weights_after(tiny_config.replace(local | {"optimizer.outer_learning_rate": 0.5}), Alone())
    assert np.abs(other["wte.weight"] - whole["wte.weight"]).max() > 1e-4  # the test can tell another rate


def test_ranks_send_their_weights_once_in_a_round(tiny_config):
    """Five steps in rounds of two and the last one: three exchanges, of as many bytes as the weights have."""

    def sent(group):
        config = tiny_config.replace({"train.sync_every": 2, "train.eval_every": 2})
        weights = weights_after(config, group)
        return group.sent / sum(w.nbytes for w in weights.values())

    # Before the first round, rank 0 hands out the outer momentum and the optimizer states, which are a few bytes here.
    assert together(2, sent) == pytest.approx([1 + 3] * 2, rel=1e-3)


def test_the_outer_update_is_that_of_nesterov_momentum():
    """Against the recurrence of torch.optim.SGD(nesterov=True), for the difference from the average as gradient.

    Moving averages of the weights are replaced by their mean.
    """
    rate, momentum = OUTER.values()
    config = resolve(overrides={"train.sync_every": 2, "train.eval_every": 2} | OUTER)

    def run(group):
        rounds, w = make_rounds(group, config), {"w": mx.array([1.0, 2.0])}
        rounds.restore(Descent(), w, {}, 0)
        found = []
        for _ in range(3):
            w = {"w": w["w"] - mx.array([0.1, 0.4]) * (1 + group.rank)}
            state = rounds.exchange({"weights": w, "optimizer": {"ema": w}})
            w = state["weights"]
            found.append([w["w"].tolist(), state["optimizer"]["ema"]["w"].tolist()])
        return found

    w, b, expected, difference = np.array([1.0, 2.0]), np.zeros(2), [], np.array([0.15, 0.6])
    for _ in range(3):
        b = momentum * b + difference
        w, mean = w - rate * (difference + momentum * b), w - difference
        expected.append([w, mean])
    first, second = together(2, run)
    assert first == second
    np.testing.assert_allclose(first, expected, atol=1e-6)


@pytest.fixture
def local(tiny_config):
    changes = {"train.sync_every": 2, "train.iters": 8, "train.eval_every": 4, "optimizer.warmup_steps": 2}
    changes |= {"optimizer.ema_decay": 0.9} | OUTER
    return tiny_config.replace(changes)


def run_until(group, made, step):
    """Trains until the evaluation at a step, on all ranks of a group. Returns the reports."""
    seen = []
    for report in made.run():
        seen.append(report)
        if isinstance(report, SaveReport) and report.step == step:
            made.stop()
    return seen


def test_ranks_resume_local_steps_bit_for_bit(tmp_path, local):
    """A checkpoint has the optimizer state of each rank. Ranks that it lacks begin with that of rank 0."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = together(2, lambda group: run_until(group, trainer(tmp_path / "whole", local, group=group), None))
    first = together(2, lambda group: run_until(group, trainer(tmp_path / "parts", local, group=group), 4))
    middle = store.load(tmp_path / "parts" / LATEST)
    assert middle.header.step == 4 and {"m@1.wte.weight", "outer.wte.weight"} <= middle.optimizer.keys()

    def resumed(group):
        return run_until(group, trainer(tmp_path / "parts", local, middle, group=group), None)

    rest = together(2, resumed)
    for rank in (0, 1):
        assert timeless(first[rank]) + timeless(rest[rank]) == timeless(whole[rank])
    assert_same_state(store.load(tmp_path / "whole" / LATEST), store.load(tmp_path / "parts" / LATEST))
    assert timeless(together(3, resumed)[2])[-1][1] == 8


def test_evaluations_must_fall_between_rounds():
    with pytest.raises(UserError, match="train.eval_every=100 is not a multiple of train.sync_every=30.*such as 120"):
        resolve(overrides={"train.sync_every": 30})
