"""The length of a run: how the settings follow from it, and which settings keep the values that someone gave."""

import itertools

import pytest

from mlx_gpt.config.budget import (
    CHOSEN,
    Budget,
    UpdateTime,
    chosen_names,
    fitted,
    iters_of,
    tokens_per_update,
    with_iters,
)
from mlx_gpt.config.presets import given_names, names_of, over, resolve
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import UserError
from mlx_gpt.optim.schedules import learning_rate

LENGTHS = [10**n * k for n in range(2, 15) for k in (1, 3)] + [10**15]
TEXT = {"parameters": 4_000_000, "train_tokens": 1_000_000, "val_tokens": 100_000}


def chosen(tokens, settings=None, **more) -> Config:
    settings = settings or {}
    return fitted(Config().replace(settings), set(settings), Budget(tokens=tokens, **TEXT | more))


@pytest.mark.parametrize("block_size", [1, 64, 256, 12_000, 20_000, 32_768, 100_000])
def test_every_length_gets_settings_that_train_about_this_many_tokens(block_size):
    for tokens in LENGTHS:
        config = chosen(tokens, {"model.block_size": block_size})
        step, iters = tokens_per_update(config), iters_of(config, tokens)
        assert iters * step <= tokens < (iters + 1) * step
        assert 1 <= config.train.eval_every <= max(1, iters)
        assert config.train.batch_size * block_size <= max(16_384, block_size)
        wanted = max(1, 512 * (tokens / 500_000) ** 0.66 / block_size)
        wanted = min(wanted, 4096 * max(1, 16_384 // block_size))
        rows = config.train.sequences_per_step
        assert wanted - 0.5 <= rows <= wanted + 0.5 + config.train.grad_accum_steps


def test_a_longer_run_has_larger_updates_and_more_of_them():
    steps = [(c.train.sequences_per_step, iters_of(c, n)) for n in LENGTHS for c in [chosen(n)]]
    assert steps[0] == (1, 0)
    for (rows, iters), (more_rows, more_iters) in itertools.pairwise(steps):
        assert more_rows >= rows and more_iters >= iters


def test_dropout_grows_with_the_passes_over_the_text():
    rates = [chosen(1_000_000, train_tokens=10**n).model.dropout for n in range(8, 2, -1)]
    assert rates[:3] == [0, 0, 0] and rates == sorted(rates) and rates[-1] == 0.3
    assert [chosen(n * 1_000_000).model.dropout for n in (6, 20, 30, 40, 80)] == [0, 0, 0.05, 0.1, 0.2]


def test_dropout_grows_with_the_parameters_for_each_token_of_the_text():
    """The points are those of runs on a tenth and on a hundredth of tiny Shakespeare, see docs/learning.md."""
    rates = [chosen(10_000_000, parameters=10**n).model.dropout for n in range(4, 13)]
    assert rates[0] == 0 and rates == sorted(rates) and rates[-1] == 0.3
    points = [(4_000_000, 451_584, 111_540), (100_000, 451_584, 11_153), (300_000, 451_584, 11_153)]
    points.append((100_000, 1_788_416, 11_153))
    found = [chosen(n, parameters=size, train_tokens=text).model.dropout for n, size, text in points]
    assert found == [0.1, 0.1, 0.25, 0.2]


@pytest.mark.parametrize(
    "settings, tokens_of_one",
    [
        ({}, 100_000),
        ({"train.eval_windows": 10}, 2560),
        ({"train.eval_windows": 1000}, 100_000),
        ({"optimizer.ema_decay": 0.9}, 200_000),
    ],
)
def test_evaluations_take_a_bounded_part_of_the_run(settings, tokens_of_one):
    for tokens in LENGTHS:
        config = chosen(tokens, settings)
        evaluations = -(-max(1, iters_of(config, tokens)) // config.train.eval_every)
        assert 1 <= evaluations <= 20
        assert evaluations == 1 or evaluations * tokens_of_one / 3 <= 0.2 * tokens
        if 0.2 * tokens > 20 * tokens_of_one and iters_of(config, tokens) > 1000:
            assert evaluations == 20


def test_evaluations_are_at_the_end_of_rounds():
    for tokens in LENGTHS:
        assert chosen(tokens, {"train.sync_every": 50}).train.eval_every % 50 == 0


def test_every_process_gets_a_sequence():
    for processes in (1, 2, 7, 200):
        assert min(chosen(n, processes=processes).train.sequences_per_step for n in LENGTHS) == processes


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "wsd-cosine"])
def test_the_learning_rate_of_a_short_run_has_no_jump(schedule):
    for iters in (10, 19, 20, 50, 199, 200, 300):
        config = chosen(256 * iters, {"optimizer.schedule": schedule}).optimizer
        peak, rates = config.learning_rate, [learning_rate(config, step, iters) for step in range(iters)]
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1]) and max(rates) == pytest.approx(peak, rel=0.05)
        # The steepest slope of the cosine is pi / 2 times the mean one.
        assert all(0 <= a - b <= 1.6 * peak / (0.9 * iters) for a, b in itertools.pairwise(rates[top:]))
        assert rates[-1] < 0.2 * peak


GIVEN = {"train.batch_size": 7, "train.grad_accum_steps": 3, "model.dropout": 0.25, "optimizer.decay_start": 0.9}
GIVEN |= {"optimizer.ema_decay": 0.5, "optimizer.warmup_steps": 3, "train.eval_every": 17}


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_setting_keeps_its_value(name):
    assert GIVEN.keys() == CHOSEN
    for tokens in LENGTHS:
        assert chosen(tokens, {name: GIVEN[name]}).get(name) == GIVEN[name]


def test_an_update_keeps_its_size_if_a_part_of_it_is_given():
    assert chosen(10**9, {"train.batch_size": 7}).train.sequences_per_step == 7
    assert chosen(10**9, {"train.grad_accum_steps": 3}).train.sequences_per_step == 3 * 16


def test_only_the_settings_of_the_table_are_chosen():
    before, after = Config().to_dict(), chosen(10**9).to_dict()
    names = {f"{t}.{n}" for t, values in before.items() for n, value in values.items() if after[t][n] != value}
    assert names <= CHOSEN


@pytest.mark.parametrize("fixed", [0.0, 0.01, 1.0, 100.0])
def test_a_run_of_limited_time_takes_this_time(fixed):
    time = UpdateTime(fixed=fixed, per_token=1e-4)
    for seconds in (60.0, 3600.0, 86400.0):
        for update in (512, 8192, None):
            tokens = time.tokens_in(seconds, update)
            size = update or tokens_per_update(chosen(tokens, overhead=time.overhead))
            if tokens > 20 * size:  # with few updates, or few sequences in one, rounding changes the time
                assert tokens / size * (fixed + 1e-4 * size) == pytest.approx(seconds, rel=0.2 if size < 4096 else 0.03)


def test_the_size_of_an_update_makes_the_most_progress_in_a_given_time():
    tokens, overhead = 10**6, 10**5
    best = 512 * 2**0.66
    progress = {n: n / (n + 9 * best) / (n + overhead) for n in range(256, 256 * 400, 256)}
    found = tokens_per_update(chosen(tokens, overhead=overhead))
    assert progress[found] == pytest.approx(max(progress.values()), rel=1e-4)


def test_too_many_updates_are_refused():
    with pytest.raises(UserError, match="fewer tokens"):
        with_iters(Config().replace({"model.block_size": 1, "train.batch_size": 1, "train.tokens": 10**15}))


def test_a_run_has_at_least_one_update():
    assert with_iters(Config().replace({"train.tokens": 1})).train.iters == 1


def test_updates_and_tokens_replace_each_other_from_layer_to_layer(tmp_path):
    (tmp_path / "long.toml").write_text("[train]\ntokens = 1_000_000\nbatch_size = 10\n[model]\nblock_size = 100\n")
    (tmp_path / "short.toml").write_text("[train]\niters = 5\n")
    long, short = str(tmp_path / "long.toml"), str(tmp_path / "short.toml")

    def length(*layers):
        train = with_iters(resolve(*layers)).train
        return train.iters, train.tokens

    assert length(long) == (1000, 1_000_000)
    assert length(long, None, {"train.batch_size": 5}) == (2000, 1_000_000)
    assert length(long, short) == (5, 0)
    assert length(short, None, {"train.tokens": 8192}) == (2, 8192)
    assert length(long, None, {"train.iters": 7}) == (7, 0)
    assert over({"train": {"tokens": 5}}, {"train": {"iters": 6, "tokens": 7}}) == {"train": {"iters": 6, "tokens": 7}}


def test_a_time_limit_without_another_length_replaces_the_length(tmp_path):
    (tmp_path / "long.toml").write_text("[train]\ntokens = 1_000_000\n")
    (tmp_path / "timed.toml").write_text("[train]\nminutes = 2\n")
    long, timed = str(tmp_path / "long.toml"), str(tmp_path / "timed.toml")

    def length(*layers):
        train = resolve(*layers).train
        return train.length, train.tokens, train.minutes

    assert length(timed) == length(long, timed) == length(long, None, {"train.minutes": 2.0}) == (None, 0, 2)
    assert length(long, None, {"train.minutes": 0.0}) == (2000, 1_000_000, 0)
    assert length(timed, None, {"train.iters": 9}) == length(timed, None, {"train.iters": 9, "train.minutes": 2.0})
    assert length(timed, None, {"train.tokens": 9})[1:] == (9, 2)
    assert length(long, None, {"train.tokens": 9, "train.minutes": 2.0})[1:] == (9, 2)


@pytest.mark.parametrize(
    "length, tokens, is_given",
    [
        ("tokens = 1_000_000", 1_000_000, True),
        ("tokens = 1_000_000", 999_999, False),
        ("tokens = 1_000_000", 0, False),
        ("tokens = 0", 5, True),
        ("tokens = 0", 0, True),
        ("", 5, True),
    ],
)
def test_a_preset_with_a_length_gives_its_settings_for_this_length_only(tmp_path, length, tokens, is_given):
    preset = tmp_path / "own.toml"
    preset.write_text(f"[train]\n{length}\nbatch_size = 10\n")
    assert ("train.batch_size" in given_names(str(preset), None, {}, tokens)) == is_given
    given = given_names(str(preset), "randygpt", {"optimizer.momentum": 0.5}, tokens)
    assert {"optimizer.momentum", "optimizer.decay_start", "train.batch_size"} <= given


@pytest.mark.parametrize("name", names_of("presets"))
def test_a_preset_with_a_length_follows_it(name):
    """model-l has the settings with which a run of its length was measured."""
    config = resolve(name)
    if tokens := config.train.tokens:
        given = given_names(name, None, {}, tokens)
        assert chosen_names(config, given) == (set() if name == "model-l" else CHOSEN)
        assert (fitted(config, given, Budget(tokens=tokens, **TEXT)) == config) == (name == "model-l")
