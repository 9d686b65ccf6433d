"""The length of a run: how the settings follow from it, and which settings keep the values that someone gave."""

import itertools

import pytest

from mlx_gpt.config.budget import Budget, UpdateTime, fitted, iters_of, update_of
from mlx_gpt.config.presets import given_names, names_of, resolve
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import UserError

LENGTHS = [10**n * k for n in range(2, 13) for k in (1, 3)]


def budget(tokens, train_tokens=1_000_000, val_tokens=100_000):
    return Budget(tokens=tokens, train_tokens=train_tokens, val_tokens=val_tokens)


def chosen(tokens, *given, text=1_000_000, **settings) -> Config:
    config = Config().replace(settings)
    return fitted(config, {*settings, *given}, budget(tokens, text))


@pytest.mark.parametrize("block_size", [1, 64, 256, 100_000])
def test_every_length_gets_settings_that_train_about_this_many_tokens(block_size):
    for tokens in LENGTHS:
        config = chosen(tokens, **{"model.block_size": block_size})
        step = config.train.sequences_per_step * block_size
        iters = iters_of(config, tokens)
        assert iters == 1 or tokens - step < iters * step <= tokens
        assert 1 <= config.train.eval_every <= iters
        assert config.train.batch_size * block_size <= max(16_384, block_size)


def test_a_longer_run_has_larger_updates_and_more_of_them():
    steps = [(c.train.sequences_per_step, iters_of(c, n)) for n in LENGTHS for c in [chosen(n)]]
    assert steps[0] == (1, 1)
    for (rows, iters), (more_rows, more_iters) in itertools.pairwise(steps):
        assert more_rows >= rows and more_iters > iters or iters == 1


def test_dropout_grows_with_the_passes_over_the_text():
    rates = [chosen(1_000_000, text=10**n).model.dropout for n in range(8, 2, -1)]
    assert rates[:2] == [0, 0] and rates == sorted(rates) and rates[-1] == 0.3
    assert chosen(5_000_000).model.dropout == 0.1 and chosen(22_000_000).model.dropout == 0.2


def test_evaluations_take_a_bounded_part_of_the_run():
    for tokens in LENGTHS:
        config = chosen(tokens)
        evaluations = -(-iters_of(config, tokens) // config.train.eval_every)
        assert 1 <= evaluations <= 20
        assert evaluations == 1 or evaluations * 100_000 / 3 <= 0.2 * tokens


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.batch_size", 7),
        ("train.grad_accum_steps", 3),
        ("model.dropout", 0.25),
        ("optimizer.decay_start", 0.9),
        ("optimizer.ema_decay", 0.5),
        ("train.eval_every", 17),
    ],
)
def test_a_given_setting_keeps_its_value(name, value):
    for tokens in LENGTHS:
        assert chosen(tokens, **{name: value}).get(name) == value


def test_an_update_keeps_its_size_if_a_part_of_it_is_given():
    assert chosen(10**9, **{"train.batch_size": 7}).train.sequences_per_step == 7
    assert chosen(10**9, **{"train.grad_accum_steps": 3}).train.sequences_per_step == 3 * 16


@pytest.mark.parametrize("fixed", [0.0, 0.01, 1.0, 100.0])
def test_a_run_of_limited_time_takes_this_time(fixed):
    time = UpdateTime(fixed=fixed, per_token=1e-4)
    for seconds in (60.0, 3600.0, 86400.0):
        for update in (512, 8192, None):
            tokens = time.tokens_in(seconds, update)
            limited = Budget(tokens=tokens, train_tokens=10**9, val_tokens=10**5, overhead=time.overhead)
            config = fitted(Config(), set(), limited)
            size = update or update_of(config, {"train.batch_size"})
            if tokens > 20 * size:  # with few updates, or few sequences in one, rounding changes the time
                assert tokens / size * (fixed + 1e-4 * size) == pytest.approx(seconds, rel=0.2 if size < 4096 else 0.03)


def test_slow_updates_are_larger_ones():
    sizes = [
        fitted(Config(), set(), Budget(tokens=10**6, train_tokens=10**9, val_tokens=10**5, overhead=n)).train
        for n in (0, 100, 10**4, 10**6)
    ]
    rows = [train.sequences_per_step for train in sizes]
    assert rows == sorted(rows) and rows[0] == chosen(10**6).train.sequences_per_step < rows[-2] < rows[-1]


def test_only_the_named_settings_are_chosen():
    names = {"batch_size", "grad_accum_steps", "eval_every", "dropout", "decay_start", "ema_decay"}
    before, after = Config().to_dict(), chosen(10**9).to_dict()
    assert {n for table in before for n, value in before[table].items() if after[table][n] != value} <= names


def test_too_many_updates_are_refused():
    with pytest.raises(UserError, match="fewer tokens"):
        iters_of(Config().replace({"model.block_size": 1, "train.batch_size": 1}), 10**15)


def test_updates_and_tokens_replace_each_other_from_layer_to_layer(tmp_path):
    (tmp_path / "long.toml").write_text("[train]\ntokens = 1_000_000\nbatch_size = 10\n[model]\nblock_size = 100\n")
    (tmp_path / "short.toml").write_text("[train]\niters = 5\n")
    long, short = str(tmp_path / "long.toml"), str(tmp_path / "short.toml")
    assert resolve(long).train.iters == 1000
    assert resolve(long, None, {"train.batch_size": 5}).train.iters == 2000
    assert resolve(long, short).train.iters == 5 and resolve(long, short).train.tokens == 0
    assert resolve(short, None, {"train.tokens": 8192}).train.iters == 2
    assert resolve(long, None, {"train.iters": 7}).train.iters == 7


def test_a_preset_with_a_length_gives_its_settings_for_this_length_only(tmp_path):
    for name, length in (("own", "tokens = 1_000_000\n"), ("any", "")):
        (tmp_path / f"{name}.toml").write_text(f"[train]\n{length}batch_size = 10\n")
    for name, tokens, is_given in (("own", 1_000_000, True), ("own", 999_999, False), ("any", 5, True)):
        preset = str(tmp_path / f"{name}.toml")
        assert ("train.batch_size" in given_names(preset, None, {}, tokens)) == is_given
        given = given_names(preset, "randygpt", {"optimizer.momentum": 0.5}, tokens)
        assert {"optimizer.momentum", "optimizer.decay_start", "train.batch_size"} <= given


@pytest.mark.parametrize("name", names_of("presets"))
def test_a_preset_with_a_length_has_all_settings_that_a_length_chooses(name):
    config = resolve(name)
    if config.train.tokens:
        given = given_names(name, None, {}, config.train.tokens)
        assert fitted(config, given, budget(config.train.tokens)) == config
