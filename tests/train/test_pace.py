"""Pace: the number of updates that fit into a time budget, and the settings that follow from it."""

import numpy as np
import pytest

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import Config
from mlx_gpt.train.pace import COUNTS, PROBE_STEPS, Pace
from mlx_gpt.train.parallel import Alone

STEP, EVALUATION = 0.5, 4.0  # seconds


def header_at(step, minutes, eval_every, iters=10**6):
    changes = {"train.minutes": minutes, "train.eval_every": eval_every, "train.iters": iters}
    return Header(config=Config().replace(changes), vocab_size=9, step=step, num_updates=step)


@pytest.fixture
def pace():
    made = Pace(num_windows=10)
    made.eval_seconds = EVALUATION
    for _ in range(PROBE_STEPS):
        made.add(STEP)
    return made


def seconds_from(step, end, eval_every):
    """The seconds of the updates to `end`, with evaluations at the multiples of `eval_every` and at the end."""
    evaluations = len([n for n in range(step + 1, end) if n % eval_every == 0]) + 1
    return (end - step) * STEP + evaluations * EVALUATION


def test_the_time_budget_holds_the_updates_and_their_evaluations_and_no_more():
    pace, draw = Pace(num_windows=10), np.random.default_rng(0)
    pace.eval_seconds = EVALUATION
    for _ in range(300):
        step, eval_every, elapsed = (int(draw.integers(*of)) for of in ((0, 50), (1, 40), (0, 30)))
        left = float(draw.uniform(10, 200))
        end = pace.iters_in_budget(STEP, header_at(step, (elapsed + left) / 60, 1), elapsed, eval_every)
        assert end > step and (seconds_from(step, end, eval_every) <= left + 1e-6 or end == step + 1)
        assert seconds_from(step, end + 1, eval_every) > left - 1e-6 or (end + 1) % eval_every == 1
    assert pace.iters_in_budget(STEP, header_at(0, 60.0, 1, iters=7), 0, 10) == 7


def test_only_evaluations_before_the_end_count_as_a_share_of_the_time(pace):
    shares = {every: pace.eval_share(STEP, header_at(0, 1.0, every, iters=100)) for every in (100, 50, 10)}
    assert shares == {100: 0.0, 50: pytest.approx(4 / 54, abs=1e-3), 10: pytest.approx(36 / 86, abs=1e-3)}


def test_the_settings_are_fitted_to_the_planned_length(pace):
    """With one evaluation, at the end, more updates fit than with the evaluations that were chosen before."""
    start = header_at(6, 1.0, 5)
    fitted = pace.planned(start, 3.0, lambda config: config.replace({"train.eval_every": config.train.iters}), Alone())
    train = fitted.config.train
    assert fitted.planned and train.eval_every == train.iters == 6 + (60 - 3 - EVALUATION) / STEP
    report = pace.plan(fitted)
    assert (report.iters, report.eval_every, report.eval_share, report.step) == (train.iters, train.iters, 0.0, 6)


@pytest.mark.parametrize("evaluations", [1, 3, 20])
def test_as_many_evaluations_as_are_fitted_are_made_in_the_time(pace, evaluations):
    def fit(config):
        return config.replace({"train.eval_every": -(-config.train.iters // evaluations)})

    for minutes in (3.0, 10.0, 60.0):
        train = pace.fitted(STEP, header_at(0, minutes, 7), 0.0, fit).train
        taken = seconds_from(0, train.iters, train.eval_every)
        assert 60 * minutes - EVALUATION - 20 * STEP < taken <= 60 * minutes + EVALUATION


def test_the_evaluations_that_are_asked_for_are_made_in_the_time(pace):
    train = pace.fitted(STEP, header_at(0, 3.0, 7), 0.0, lambda config: config).train
    assert train.eval_every == 7 and seconds_from(0, train.iters, 7) <= 180 < seconds_from(0, train.iters + 8, 7)


def test_the_plan_of_rank_0_counts(pace):
    class Rank1(Alone):
        def gather(self, *numbers):
            assert len(numbers) == len(COUNTS)
            return [[50, 7, 25], list(numbers)]

    config = pace.planned(header_at(6, 1.0, 5), 3.0, lambda config: config, Rank1()).config
    assert [config.get(name) for name in COUNTS] == [50, 7, 25]
