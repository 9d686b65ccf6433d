"""Learning from rewards: texts drawn, rewarded and learned from, and runs that resume."""

import json

import numpy as np
import pytest
import safetensors.numpy
from devices import tolerance
from learning import PROMPTS, config_of, learner, metric, share_of, source_of
from training import assert_same_state, timeless

from mlx_gpt.checkpoint import store
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.model.gpt import GPT
from mlx_gpt.rl.objectives import Rollouts
from mlx_gpt.rl.rollout import REFERENCE, SAMPLES
from mlx_gpt.train.objective import cross_entropy
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES
from mlx_gpt.train.saving import LATEST


def bandit(problems, texts):
    """Only the first letter counts: 1 for a c, 0.5 for a b."""
    return [{"arm": {"c": 1.0, "b": 0.5}.get(text[:1], 0.0)} for text in texts]


TASKS = {"bandit": (bandit, {"rl__max_tokens": 1}), "letters": (share_of("a"), {"rl__success": 0.5})}
FIRST = [("grpo", "bandit", 1), ("maxrl", "letters", 1)]
EVERY = [(o, t, s) for o in ROLLOUT_OBJECTIVES for t in TASKS for s in range(1, 6) if (o, t, s) not in FIRST]


@pytest.mark.parametrize(
    "objective, task, seed", [*FIRST, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY)]
)
def test_every_objective_reaches_the_optimum_of_a_toy_task(tmp_path, objective, task, seed):
    reward, settings = TASKS[task]
    if objective in ("maxrl", "rft"):
        settings = settings | {"rl__tau": 0.1, "rl__success": 0.9 if task == "bandit" else 1 / 3}
    config = config_of(objective, seed, train__iters=60 if objective in ("rft", "dr-grpo") else 40, **settings)
    rewards = metric(learner(config, tmp_path, reward).run(), "reward")
    assert rewards[:2].mean() < 0.4 and rewards[-5:].mean() > 0.95, rewards.round(2)


def first_batch(tmp_path, **settings):
    config = config_of("grpo", **settings)
    model = GPT(config.model, 13, seed=1)
    source = source_of(config, tmp_path, share_of("a"), model.weights())
    return config, model, source, Rollouts(*map(mx.array, source.next(0, model.weights())))


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_log_probabilities_of_the_draws_are_those_of_the_forward_pass(tmp_path, temperature):
    """At the temperature of the draws. Without dropout, the first ratio is therefore 1."""
    _, model, _, batch = first_batch(tmp_path, rl__temperature=temperature)
    logits, _ = model.apply(model.weights(), batch.inputs)
    logp = -cross_entropy(logits / temperature, batch.targets) * batch.mask
    np.testing.assert_allclose(batch.old, logp, atol=tolerance("float32 loss"))
    np.testing.assert_allclose(batch.reference * batch.mask, logp, atol=tolerance("float32 loss"))


def test_a_batch_holds_the_prompts_and_the_texts_of_the_lines_in_the_folder(tmp_path):
    config, _, source, batch = first_batch(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert len(lines) == len(batch.inputs) == 16 and {line["prompt"] for line in lines} <= set(PROMPTS)
    letters = {i + 2: letter for i, letter in enumerate("abcdefghijk")}
    for line, inputs, targets, mask in zip(lines, *(np.array(a) for a in batch[:3]), strict=True):
        tokens = [*inputs[:1], *targets]
        drawn = [t for t, m in zip(targets, mask, strict=True) if m]
        assert "".join(letters[t] for t in tokens[: len(line["prompt"])]) == line["prompt"]
        assert "".join(letters.get(t, "") for t in drawn) == line["text"]
        assert len(drawn) <= config.rl.max_tokens and (len(drawn) == config.rl.max_tokens or drawn[-1] == 1)  # EOS
        assert line["reward"]["letters"] == line["text"].count("a") / 6
    np.testing.assert_allclose(batch.advantages, [line["advantage"] for line in lines], rtol=1e-6)
    assert source.metrics["reward"] == pytest.approx(np.mean([sum(line["reward"].values()) for line in lines]))
    assert 0 < source.metrics["distinct"] <= 1


def test_texts_that_cannot_be_recorded_are_told_once_and_change_nothing(tmp_path):
    _, model, source, first = first_batch(tmp_path)
    other, notes = tmp_path / "other", []
    (other / SAMPLES).mkdir(parents=True)
    blocked = source_of(config_of("grpo"), other, share_of("a"), model.weights(), note=notes.append)
    for step, batch in enumerate([first, source.next(1, model.weights())]):
        found = blocked.next(step, model.weights())
        assert all(np.array_equal(a, b) for a, b in zip(found, batch, strict=True))
    assert notes == [f"{SAMPLES} cannot be written: Is a directory; later texts are not recorded"]


def test_prompts_take_turns_and_each_pass_has_its_own_order(tmp_path):
    config = config_of("grpo", rl__group_size=1, rl__max_tokens=1)
    model = GPT(config.model, 13, seed=1)
    source = source_of(config, tmp_path, share_of("a"), model.weights(), prompts="abcde")
    for step in range(10):
        source.next(step, model.weights())
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / SAMPLES).read_text().splitlines()]
    passes = [prompts[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(p) == list("abcde") for p in passes) and len({tuple(p) for p in passes}) > 1


@pytest.mark.parametrize("epochs, cut", [(1, 3), (3, 4)])
def test_a_resumed_run_equals_an_uninterrupted_one_rollouts_included(tmp_path, epochs, cut):
    """Also in the middle of the updates with a batch, which was drawn with weights that are gone."""
    config = config_of("grpo", rl__epochs=epochs, rl__kl_weight=0.1, train__iters=7, model__dropout=0.0)
    (tmp_path / "whole").mkdir(), (tmp_path / "cut").mkdir()
    whole = [*learner(config, tmp_path / "whole", share_of("a")).run()]
    first = learner(config, tmp_path / "cut", share_of("a"))
    seen = []
    for report in first.run():
        seen.append(report)
        if getattr(report, "step", 0) == cut and hasattr(report, "grad_norm"):
            first.stop()
    again = learner(config, tmp_path / "cut", share_of("a"), store.load(tmp_path / "cut" / LATEST))
    steps = [r for r in [*seen, *again.run()] if hasattr(r, "grad_norm")]
    assert timeless(steps) == timeless([r for r in whole if hasattr(r, "grad_norm")])
    assert_same_state(store.load(tmp_path / "cut" / LATEST), store.load(tmp_path / "whole" / LATEST))
    assert (tmp_path / "cut" / SAMPLES).read_text() == (tmp_path / "whole" / SAMPLES).read_text()


def test_the_reference_is_read_from_the_folder_and_refused_if_it_is_of_another_network(tmp_path):
    config, model, _, batch = first_batch(tmp_path)
    again = source_of(config, tmp_path, share_of("a")).next(0, model.weights())
    assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))
    (tmp_path / REFERENCE).write_bytes(safetensors.numpy.save({"wte.weight": np.zeros((3, 4), np.float32)}))
    with pytest.raises(BadFile, match="reference.safetensors: does not hold the weights of this network"):
        source_of(config, tmp_path, share_of("a")).next(0, model.weights())
    (tmp_path / REFERENCE).unlink()
    with pytest.raises(BadFile, match="reference.safetensors: is missing"):
        source_of(config, tmp_path, share_of("a")).next(0, model.weights())


@pytest.mark.parametrize("position", [{}, {"drawn": -1, "updates": 0}, {"drawn": 1}, {"drawn": "1", "updates": 1}])
def test_positions_of_other_sources_are_refused(tmp_path, position):
    with pytest.raises(BadFile, match="is not one of rollouts"):
        source_of(config_of("grpo"), tmp_path, share_of("a")).seek(position)


def test_batches_without_a_success_are_skipped_and_told_if_they_do_not_end(tmp_path):
    calls = []

    def third_time(problems, texts):
        calls.append(len(texts))
        return [{"x": float(len(calls) % 3 == 0)} for _ in texts]

    config = config_of("maxrl", train__iters=2)
    assert (metric(learner(config, tmp_path, third_time).run(), "reward") == 1).all() and len(calls) == 6
    with pytest.raises(UserError, match="no text of 50 batches in a row had a reward of rl.success=1; lower it"):
        [*learner(config, tmp_path, lambda problems, texts: [{"x": 0.0}] * len(texts)).run()]


def test_a_part_of_the_reward_that_a_text_lacks_is_0(tmp_path):
    config = config_of("grpo")
    model = GPT(config.model, 13, seed=1)
    source = source_of(config, tmp_path, lambda problems, texts: [{text[:1]: 1.0} for text in texts], model.weights())
    source.next(0, model.weights())
    parts = [value for name, value in source.metrics.items() if name.startswith("reward.")]
    assert len(parts) > 1 and sum(parts) == pytest.approx(source.metrics["reward"])


def test_prompts_that_do_not_fit_or_have_other_characters_are_left_out(tmp_path):
    told, config = [], config_of("grpo")
    fitting = config.model.block_size + 1 - config.rl.max_tokens
    prompts = ("a", "Z", "b" * fitting, "b" * (fitting + 1))
    source_of(config, tmp_path, share_of("a"), {}, prompts=prompts, note=told.append)
    assert told == [
        "1 of 4 prompts are left out: they have characters that the training text lacks",
        f"1 of 4 prompts are left out: with --max-tokens 6, they do not fit into {config.model.block_size} tokens",
    ]
    with pytest.raises(UserError, match=f"the shortest prompt has {fitting + 1} tokens, .*; give at most 5"):
        source_of(config, tmp_path, share_of("a"), {}, prompts=prompts[3:])
    with pytest.raises(UserError, match="every prompt has characters that the training text lacks"):
        source_of(config, tmp_path, share_of("a"), {}, prompts=("Z", "Y"))


def test_the_share_of_different_texts_of_a_prompt_is_measured(tmp_path):
    config = config_of("grpo", rl__temperature=0.01)
    model = GPT(config.model, 13, seed=1)
    weights = {k: w * 50 for k, w in model.weights().items()}
    source = source_of(config, tmp_path, share_of("a"), weights)
    source.next(0, weights)
    assert source.metrics["distinct"] == 1 / config.rl.group_size
