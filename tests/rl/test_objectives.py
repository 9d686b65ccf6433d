"""Objectives of reinforcement learning: published numbers, finite differences, and the policy gradient."""

import numpy as np
import pytest
from devices import tolerance

from mlx_gpt.config.schema import Config
from mlx_gpt.device.mlx import mx
from mlx_gpt.rl.objectives import MAX_ADVANTAGE, Rollouts
from mlx_gpt.train.objective import cross_entropy
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES

B, T, V = 4, 6, 5


def config_of(**rl):
    entropy_weight = rl.pop("entropy_weight", 0.0)
    return Config.from_dict({"rl": {"kl_weight": 0.0} | rl, "train": {"entropy_weight": entropy_weight}})


def batch_of(logits, config, moved=0.0, seed=0, advantages=None):
    """A batch of rollouts of 2 prompts. `old` differs from the log-probabilities of the logits by up to `moved`."""
    draw = np.random.default_rng(seed)
    targets, lengths = draw.integers(0, V, (B, T)), [3, 5, 2, 4]
    mask = np.array([[1 < t < 2 + n for t in range(T)] for n in lengths], np.float32)
    scaled = np.array(logits, np.float64) / config.rl.temperature
    logp = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    logp = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    old, reference = (logp + draw.uniform(-moved, moved, (B, T)) for _ in range(2))
    given = np.array([1.5, -0.5, 0.25, 0.75]) if advantages is None else advantages
    arrays = (np.zeros((B, T)), targets, mask, old, reference, given)
    return Rollouts(*(mx.array(a.astype(np.int32 if i < 2 else np.float32)) for i, a in enumerate(arrays)))


def logits_of(seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, V)).astype(np.float32)


def mean_loss(objective, batch, logits):
    return objective(logits, {}, batch)[0] / objective.count(batch)


def numpy_loss(name, logits, batch, config):
    """The definition of each objective, in float64."""
    rl, (_, targets, mask, old, reference, advantages) = config.rl, (np.array(a, np.float64) for a in batch)
    logits = np.array(logits, np.float64) / rl.temperature
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logp = np.take_along_axis(every, targets.astype(int)[..., None], -1)[..., 0]
    h, d = -(np.exp(every) * every).sum(-1), reference - logp
    total, texts = 0.0, []
    for i in range(B):
        drawn = mask[i] > 0
        lp, old_lp, a = logp[i, drawn], old[i, drawn], advantages[i]
        extra = rl.kl_weight * (np.exp(d[i, drawn]) - d[i, drawn] - 1) - config.train.entropy_weight * h[i, drawn]
        clip = rl.clip or {"gspo": 3e-4}.get(name, 0.2)
        if name == "gspo":
            ratio = np.exp((lp - old_lp).mean())
            tokens = np.full(len(lp), -min(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a)) + extra
        elif name in ("maxrl", "rft"):
            tokens = -a * lp + extra
        else:
            ratio = np.exp(lp - old_lp)
            tokens = -np.minimum(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a) + extra
        total += tokens.sum()
        texts.append(tokens.mean())
    if name in ("gspo", "maxrl", "rft"):
        return np.mean(texts)
    return total / (B * rl.max_tokens if name == "dr-grpo" else mask.sum())


SETTINGS = [{}, {"kl_weight": 0.5}, {"entropy_weight": 0.3, "temperature": 0.7}, {"clip": 0.05, "kl_weight": 0.1}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ROLLOUT_OBJECTIVES)
def test_a_loss_is_its_definition(name, settings):
    config = config_of(**settings)
    objective, logits = ROLLOUT_OBJECTIVES[name](config), logits_of()
    for moved in (0.0, 0.5):
        batch = batch_of(logits, config, moved)
        expected = numpy_loss(name, logits, batch, config)
        assert mean_loss(objective, batch, mx.array(logits)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ROLLOUT_OBJECTIVES)
def test_gradients_equal_finite_differences(name, settings):
    """Of the definition in float64, so that the differences are exact enough. No ratio is near a bound of clipping."""
    config = config_of(**settings)
    objective, logits = ROLLOUT_OBJECTIVES[name](config), logits_of()
    batch = batch_of(logits, config, moved=0.5)
    gradient = np.array(mx.grad(lambda x: mean_loss(objective, batch, x))(mx.array(logits)))
    draw, step = np.random.default_rng(2), 1e-6
    for _ in range(12):
        place = tuple(draw.integers(0, n) for n in logits.shape)
        shifted = [logits.astype(np.float64) for _ in range(2)]
        shifted[0][place] += step
        shifted[1][place] -= step
        up, down = (numpy_loss(name, x, batch, config) for x in shifted)
        assert gradient[place] == pytest.approx((up - down) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "gspo"])
def test_the_first_gradient_with_a_batch_is_the_policy_gradient(name):
    """Where the ratio is 1, the gradient is that of REINFORCE: the mean of -A log p."""
    config = config_of()
    objective, logits = ROLLOUT_OBJECTIVES[name](config), mx.array(logits_of())
    batch = batch_of(logits, config)
    batch = batch._replace(old=-cross_entropy(logits, batch.targets))

    def reinforce(x):
        weighted = -batch.advantages[:, None] * -cross_entropy(x, batch.targets) * batch.mask
        lengths = batch.mask.sum(axis=1, keepdims=True) if name == "gspo" else 1
        return (weighted / lengths).sum() / objective.count(batch)

    found, expected = (mx.grad(f)(logits) for f in (lambda x: mean_loss(objective, batch, x), reinforce))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert objective(logits, {}, batch)[1]["clipped"].item() == 0


@pytest.mark.parametrize("name", ROLLOUT_OBJECTIVES)
def test_parts_of_a_batch_add_up(name):
    """Sums over parts, each divided by the count of the whole, are the loss of the whole."""
    config = config_of(kl_weight=0.2, entropy_weight=0.1)
    objective, logits = ROLLOUT_OBJECTIVES[name](config), mx.array(logits_of())
    batch = batch_of(logits, config, moved=0.5)
    count, whole = objective.count(batch), objective(logits, {}, batch)
    parts = [objective(logits[i:j], {}, Rollouts(*(a[i:j] for a in batch))) for i, j in ((0, 1), (1, 4))]
    assert (sum(part[0] for part in parts) / count).item() == pytest.approx((whole[0] / count).item(), abs=1e-6)
    for metric, value in whole[1].items():
        assert sum(part[1][metric] for part in parts).item() == pytest.approx(value.item(), abs=1e-5), metric


def test_group_advantages_are_the_published_ones():
    rewards = np.array([[23.0, 30, -4, 10]])
    found = ROLLOUT_OBJECTIVES["grpo"].advantages(rewards, config_of())
    np.testing.assert_allclose(found, [[0.635203, 1.174163, -1.443643, -0.365723]], atol=1e-6)
    assert np.array_equal(ROLLOUT_OBJECTIVES["grpo"].advantages(np.full((2, 3), 7.0), config_of()), np.zeros((2, 3)))
    one_of_many = np.zeros((1, 100))
    one_of_many[0, 0] = 1
    assert ROLLOUT_OBJECTIVES["gspo"].advantages(one_of_many, config_of()).max() == MAX_ADVANTAGE
    np.testing.assert_allclose(
        ROLLOUT_OBJECTIVES["dr-grpo"].advantages(rewards, config_of()), rewards - rewards.mean(), atol=1e-12
    )


def test_maxrl_is_the_published_number():
    """Rewards 23, 21 and 10, log-probabilities -5, -6 and -4, of which the first two are successes from 20 on."""
    config, rewards, logp = config_of(success=20.0, tau=1.0), np.array([[23.0, 21, 10]]), np.array([-5.0, -6, -4])
    objective = ROLLOUT_OBJECTIVES["maxrl"](config)
    logits = np.stack([logp, np.log1p(-np.exp(logp))], axis=-1)[:, None].astype(np.float32)
    zeros, ones = mx.zeros((3, 1)), mx.ones((3, 1))
    advantages = objective.advantages(rewards, config).reshape(-1)
    batch = Rollouts(zeros, zeros.astype(mx.int32), ones, zeros, zeros, mx.array(advantages.astype(np.float32)))
    assert mean_loss(objective, batch, mx.array(logits)).item() == pytest.approx(5.119203, abs=1e-5)


def test_maxrl_weighs_successes_alike_at_a_high_temperature_and_only_the_best_at_a_low_one():
    rewards, maxrl = np.array([[3.0, 2.0, 0.5], [1.0, 0.0, 2.5]]), ROLLOUT_OBJECTIVES["maxrl"]
    uniform = ROLLOUT_OBJECTIVES["rft"].advantages(rewards, config_of(success=1.0))
    np.testing.assert_allclose(uniform, [[1.5, 1.5, 0], [1.5, 0, 1.5]])
    np.testing.assert_allclose(maxrl.advantages(rewards, config_of(success=1.0, tau=1e6)), uniform, atol=1e-5)
    np.testing.assert_allclose(
        maxrl.advantages(rewards, config_of(success=1.0, tau=0.01)), [[6, 0, 0], [0] * 3], atol=1e-9
    )
    for reward in (-1e9, 0.0):  # no success
        assert not maxrl.advantages(np.full((2, 2), reward), config_of(success=1.0)).any()


def test_the_divergence_is_never_negative_and_0_for_equal_policies():
    config = config_of()
    objective, logits = ROLLOUT_OBJECTIVES["grpo"](config), mx.array(logits_of())
    batch = batch_of(logits, config, moved=1.0)
    assert objective(logits, {}, batch)[1]["kl"].item() > 0.01
    same = batch._replace(reference=-cross_entropy(logits, batch.targets))
    assert objective(logits, {}, same)[1]["kl"].item() == pytest.approx(0, abs=tolerance("float32 loss"))
