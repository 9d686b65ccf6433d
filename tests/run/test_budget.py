"""The length of a new run in tokens or minutes, and that of a resumed one."""

import pytest
from constants import TINY

from mlx_gpt.config.presets import resolve
from mlx_gpt.errors import UserError
from mlx_gpt.run.request import Request, ignore, settings_of
from mlx_gpt.run.session import Session
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import StopReport


def config_of(settings, note=ignore):
    return begin(Request(settings=settings_of((TINY | settings).items())), note).header.config


def test_a_length_in_tokens_chooses_settings_and_says_which():
    notes = []
    config = config_of({"train.tokens": 5000, "optimizer.decay_start": 0.5}, notes.append)
    tokens_per_step = config.train.sequences_per_step * config.model.block_size
    assert 5000 - tokens_per_step < config.train.iters * tokens_per_step <= 5000
    assert config.optimizer.decay_start == 0.5
    [line] = [text for text in notes if text.startswith("5,000 tokens")]
    assert f"train.batch_size={config.train.batch_size}" in line and "decay_start" not in line and "iters" not in line


def test_a_length_in_updates_chooses_nothing():
    notes, given = [], {"train.iters": 100, "train.minutes": 1.0}
    assert config_of(given, notes.append) == resolve("model-l", None, TINY | given) and not notes


def test_a_time_limit_chooses_settings_by_the_measured_pace():
    notes = []
    start = begin(Request(settings=settings_of((TINY | {"train.minutes": 0.02}).items())), notes.append)
    [line] = [text for text in notes if " passes over the text: " in text]
    assert line.startswith("about ") and "train.batch_size=" in line
    assert start.header.config.optimizer.decay_start == 0.1
    assert start.header.elapsed > 0 and start.header.config.train.tokens == 0


def test_the_time_that_the_measurement_takes_is_a_part_of_the_limit(tmp_path):
    request = Request(settings=settings_of((TINY | {"train.minutes": 0.01}).items()), out=tmp_path / "run")
    session = Session(request, ignore)
    measured = session.start.header.elapsed
    assert measured > 0
    *_, last = session
    assert isinstance(last, StopReport) and last.elapsed > measured


@pytest.fixture
def run(tmp_path):
    """A run of 3,000 tokens in updates of 4 sequences of 8 tokens."""
    settings = TINY | {"train.tokens": 3000, "train.batch_size": 4, "train.eval_windows": 2, "train.sample_every": 0}
    list(Session(Request(settings=settings_of(settings.items()), out=tmp_path / "run"), ignore))
    return tmp_path / "run"


def resumed(run, **settings):
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return begin(Request(resume=str(run), settings=settings_of(given.items())), ignore)


def test_a_resumed_run_counts_the_tokens_that_it_was_trained_on(run):
    start = resumed(run)
    block = start.header.config.model.block_size
    assert start.is_complete and start.header.tokens == start.header.step * 4 * block <= 3000
    longer = resumed(run, train__tokens=6000).header.config
    assert 6000 - 4 * block < longer.train.iters * 4 * block <= 6000 and not longer.train.minutes
    larger = resumed(run, train__tokens=6000, train__batch_size=8).header.config
    assert larger.train.iters == start.header.step + (6000 - start.header.tokens) // (8 * block)
    assert larger.optimizer == start.header.config.optimizer


def test_a_resumed_run_with_fewer_tokens_than_it_has_is_complete(run):
    assert resumed(run, train__tokens=100).is_complete


def test_updates_and_minutes_replace_the_tokens_of_a_resumed_run(run):
    for settings in ({"train__iters": 900}, {"train__minutes": 1.0}):
        config = resumed(run, **settings).header.config
        assert config.train.tokens == 0 and config.train.iters >= 900


@pytest.mark.parametrize("text", ["a", "ab\n" * 5])
def test_a_text_that_is_too_short_is_refused(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    settings = TINY | {"train.tokens": 500, "data.corpus": (str(tmp_path / "text.txt"),)}
    with pytest.raises(UserError, match="give a longer text"):
        Session(Request(settings=settings_of(settings.items()), out=tmp_path / "run"), ignore)


def test_tokens_and_updates_together_are_refused():
    with pytest.raises(UserError, match="both give the length"):
        settings_of([("train.tokens", 5), ("train.iters", 5)])
