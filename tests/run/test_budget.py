"""The length of a new run in tokens or minutes, and that of a resumed one."""

import math

import numpy as np
import pytest
from constants import TINY

from mlx_gpt.checkpoint import store
from mlx_gpt.cli.plan import print_plan
from mlx_gpt.config import law
from mlx_gpt.config.budget import CHOSEN
from mlx_gpt.config.law import Law
from mlx_gpt.config.presets import resolve
from mlx_gpt.errors import OutOfRoom, ResumeRefused, UserError
from mlx_gpt.run import budget
from mlx_gpt.run.build import make_trainer
from mlx_gpt.run.planning import plan
from mlx_gpt.run.request import Request, ignore, settings_of
from mlx_gpt.run.rl import rl_request
from mlx_gpt.run.session import Session
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import Plan, StepReport, StopReport

BLOCK = TINY["model.block_size"]


def started(settings, processes=1, **more):
    return begin(Request(settings=settings_of((TINY | settings).items()), **more), ignore, processes)


def config_of(settings, **more):
    return started(settings, **more).header.config


def trained(folder, settings, **more):
    settings = {"train.eval_windows": 2, "train.sample_every": 0} | settings
    session = Session(Request(settings=settings_of(settings.items()), out=folder, **more), ignore)
    return session, list(session)


def test_a_length_in_tokens_chooses_settings_and_says_which():
    start = started({"train.tokens": 5000, "optimizer.decay_start": 0.5})
    config, line = start.header.config, start.chosen
    step = config.train.sequences_per_step * BLOCK
    assert 5000 - step < config.train.iters * step <= 5000
    assert config.optimizer.decay_start == 0.5
    assert line.startswith("5,000 tokens")
    for name in CHOSEN - {"optimizer.decay_start"}:
        assert f"{name}={config.get(name)}" in line
    assert "decay_start" not in line


def test_a_schedule_that_decreases_at_once_has_no_start_of_its_decrease():
    for schedule, start_of_decrease in (("linear", 0.6), ("cosine", 0.1)):
        start = started({"train.tokens": 20_000, "optimizer.schedule": schedule}, preset="tiny")
        assert start.header.config.optimizer.decay_start == start_of_decrease
        assert ("decay_start=" in start.chosen) == (schedule == "cosine")


def test_a_length_in_updates_chooses_nothing():
    given = {"train.iters": 100, "train.minutes": 1.0}
    start = started(given)
    assert start.header.config == resolve("model-l", None, TINY | given) and not start.chosen


def test_the_settings_are_said_once_and_only_if_the_run_begins(tmp_path):
    notes, settings = [], TINY | {"train.tokens": 5000}
    session = Session(Request(settings=settings_of(settings.items()), out=tmp_path / "run"), notes.append)
    session.close()
    assert notes.count(session.start.chosen) == 1 and session.start.chosen
    (tmp_path / "short.txt").write_text("too short")
    refused = settings_of((settings | {"data.corpus": (str(tmp_path / "short.txt"),)}).items())
    with pytest.raises(UserError, match="longer text"):
        Session(Request(settings=refused, out=tmp_path / "other"), notes.append)
    assert sum("passes over the text" in line for line in notes) == 1


def test_a_run_with_rewards_has_no_length_in_tokens():
    settings = {"train.objective": "grpo"}
    start = started(settings, preset="tiny")
    assert start.header.config == resolve("tiny", None, TINY | settings | {"train.tokens": 0}) and not start.chosen


def test_a_plan_predicts_the_loss_of_a_new_run_only(tmp_path, monkeypatch, capsys, shakespeare):
    notes, settings = [], {"data.corpus": ("shakespeare",), "train.tokens": 5000, "train.eval_windows": 0}
    example = Law(limit=1.0, scale=0.5, power=0.5, error=0.02, shortest=100, longest=10_000)
    monkeypatch.setattr(law, "LAWS", {"tiny": example})
    request = Request(settings=settings_of(settings.items()), preset="tiny", out=tmp_path / "run")
    facts = plan(begin(request, ignore, 1), notes.append)
    assert facts["expected_loss"] == round(example.loss(facts["tokens"]), 3) and facts["expected_error"] == 0.02
    assert len(notes) == 1 and "passes over the text" in notes[0]
    print_plan(facts, False)
    assert f"about {facts['expected_loss']:.2f} nats per token" in capsys.readouterr().out
    other = Request(
        settings=settings_of((settings | {"model.n_layer": 1}).items()), preset="tiny", out=tmp_path / "run"
    )
    assert "expected_loss" not in plan(begin(other, ignore, 1), notes.append)
    assert notes[-1] == "the loss is not predicted: only runs of tiny were measured at several lengths"
    path = tmp_path / "start.safetensors"
    start = begin(request, ignore, 1)
    model = make_trainer(start, tmp_path, ignore).model
    weights = {name: np.array(w) for name, w in model.weights().items()}
    store.save(path, store.Checkpoint(header=start.header, weights=weights, optimizer={}))
    tuned = Request(settings=request.settings, preset="tiny", out=tmp_path / "run", fine_tune=path)
    assert "expected_loss" not in plan(begin(tuned, ignore, 1), ignore)


def test_a_recipe_with_updates_chooses_nothing():
    assert config_of({}, recipe="randygpt") == resolve("model-l", "randygpt", TINY)


def test_a_recipe_keeps_its_settings_at_another_length():
    config, own = config_of({"train.tokens": 50_000}, recipe="randygpt"), resolve("model-l", "randygpt", TINY)
    assert config.train.iters == 50_000 // (64 * BLOCK)
    assert config.optimizer == own.optimizer and config.train.batch_size == own.train.batch_size


def test_a_preset_that_gives_all_settings_keeps_them(tmp_path):
    _, _ = trained(tmp_path / "run", TINY | {"train.iters": 2, "train.batch_size": 5})
    for length in ({"train.tokens": 20_000}, {"train.minutes": 1.0}):
        preset = str(tmp_path / "run/run.toml")
        start = started(length, preset=preset)
        config = start.header.config
        assert not start.chosen and config.train.batch_size == 5
        assert config.optimizer == resolve(preset).optimizer


def test_a_time_limit_chooses_settings_by_the_measured_pace():
    start = started({"train.minutes": 0.02})
    assert start.chosen.startswith("about ") and "train.batch_size=" in start.chosen
    assert start.header.config.optimizer.decay_start == 0.1
    assert start.header.elapsed > 0 and start.header.config.train.tokens == 0


@pytest.mark.parametrize("minutes", [1e-6, 1e6])
def test_any_time_limit_has_settings(minutes):
    config = config_of({"train.minutes": minutes, "train.batch_size": 1, "train.grad_accum_steps": 1})
    assert config.train.batch_size == 1 and config.train.eval_every >= 1


def test_the_shorter_of_two_lengths_chooses_the_settings():
    by_tokens = config_of({"train.tokens": 5000})
    both = started({"train.tokens": 5000, "train.minutes": 60.0})
    assert both.header.config == by_tokens.replace({"train.minutes": 60.0}) and not both.chosen.startswith("about")
    limited = started({"train.tokens": 10**10, "train.minutes": 0.02})
    assert limited.chosen.startswith("about ")
    rows = limited.header.config.train.sequences_per_step
    assert rows < config_of({"train.tokens": 10**10}).train.sequences_per_step / 100


def test_a_run_whose_time_is_spent_is_complete(tmp_path):
    trained(tmp_path / "run", TINY | {"train.minutes": 0.001, "train.batch_size": 1})
    session = Session(Request(resume=str(tmp_path / "run")), ignore)
    assert session.start.is_complete and list(session) == []
    longer = begin(Request(resume=str(tmp_path / "run"), settings=settings_of([("train.minutes", 5.0)])), ignore)
    assert not longer.is_complete and longer.header.step > 0


def test_a_planned_run_has_a_warm_up_and_evaluations_that_fit_it(tmp_path):
    start = started({"train.minutes": 1.0})
    for iters in (7, 30, 400, 10**6):
        config = start.fit(start.header.config.replace({"train.iters": iters}))
        assert config.optimizer.warmup_steps == min(20, int(config.optimizer.decay_start * iters))
        assert math.ceil(iters / config.train.eval_every) <= 20
        others = {"train.iters": iters, "train.eval_every": 5, "optimizer.warmup_steps": 5}
        assert config.replace(others) == start.header.config.replace(others)
    kept = started({"train.minutes": 1.0, "optimizer.warmup_steps": 15, "train.eval_every": 3})
    config = kept.fit(kept.header.config.replace({"train.iters": 10}))
    assert (config.optimizer.warmup_steps, config.train.eval_every) == (15, 3)
    session, reports = trained(tmp_path / "run", TINY | {"train.minutes": 0.02})
    [found] = [report for report in reports if isinstance(report, Plan)]
    saved = resolve(str(tmp_path / "run/run.toml"))
    assert (found.iters, found.warmup_steps, found.eval_every) == (
        saved.train.iters, saved.optimizer.warmup_steps, saved.train.eval_every,
    )  # fmt: skip
    assert found.warmup_steps <= 0.1 * found.iters


def test_the_time_that_the_measurement_takes_is_a_part_of_the_limit(tmp_path):
    session, reports = trained(tmp_path / "run", TINY | {"train.minutes": 0.01})
    measured = session.start.header.elapsed
    assert measured > 0
    assert isinstance(reports[-1], StopReport)
    assert reports[-1].elapsed - reports[-1].seconds == pytest.approx(measured, abs=0.01)


@pytest.mark.parametrize(
    "seconds, timed, overhead",
    [
        ({1: 1.0, 4: 4.0}, [1, 4], 0),
        ({1: 1.0, 4: 2.5}, [1, 4], 1),
        ({1: 1.0, 4: 1.0, 16: 1.0, 64: 1.63}, [1, 4, 16, 64], 99),
        ({1: 1.0, 4: 1.0, 16: 1.0, 64: 64.0}, [1, 4, 16, 64], 0),
        ({1: 1.0, 4: OutOfRoom("")}, [1, 4], 0),
        ({1: 1.0, 4: 1.9, 16: OutOfRoom("")}, [1, 4, 16], 7 / 3),
        ({1: 100.0}, [1], 0),
        ({1: 1.0, 4: 0.5}, [1, 4, 16], 2 / 3),  # 16 take 10 s
    ],
)
def test_the_time_of_an_update_is_measured_with_few_sequences_first(monkeypatch, seconds, timed, overhead):
    """`overhead` is in sequences."""
    asked = []

    def measured(start, sequences):
        asked.append(sequences)
        if isinstance(found := seconds.get(sequences, 10.0), OutOfRoom):
            raise found
        return found

    monkeypatch.setattr(budget, "_seconds", measured)
    found = budget._update_time(started({"train.minutes": 60.0, "train.iters": 1}))
    assert asked == timed
    assert found.overhead / BLOCK == pytest.approx(overhead, abs=1e-6) and found.per_token > 0


def test_a_sequence_that_does_not_fit_into_memory_is_an_error(monkeypatch):
    def refused(start, sequences):
        raise OutOfRoom("too large")

    monkeypatch.setattr(budget, "_seconds", refused)
    with pytest.raises(OutOfRoom):
        started({"train.minutes": 1.0})


def test_every_process_gets_a_sequence():
    for processes in (1, 3):
        assert config_of({"train.tokens": 500}, processes=processes).train.sequences_per_step == processes


def test_fine_tuning_takes_only_the_length(tmp_path):
    trained(tmp_path / "run", TINY | {"train.iters": 2})
    request = Request(fine_tune=tmp_path / "run/checkpoint.safetensors", settings={"train.tokens": 10_000})
    config = begin(request, ignore).header.config
    assert config.train.iters == 10_000 // (16 * BLOCK) and config.optimizer.decay_start == 0.6


def test_a_preset_beside_a_checkpoint_says_what_it_leaves_out(tmp_path):
    trained(tmp_path / "run", TINY | {"train.iters": 2})
    network = "\n".join(f"{name.partition('.')[2]} = {value}" for name, value in TINY.items() if "model." in name)
    (tmp_path / "own.toml").write_text(f"[model]\n{network}\n[train]\ntokens = 9000\n[optimizer]\nbeta1 = 0.8\n")
    checkpoint, notes = tmp_path / "run/checkpoint.safetensors", []
    start = begin(Request(preset=str(tmp_path / "own.toml"), fine_tune=checkpoint), notes.append)
    assert start.header.config.optimizer.beta1 == 0.9
    left_out = "only [model] counts for a checkpoint, [optimizer], [train] of its file are left out"
    assert sum(note.endswith(left_out) for note in notes) == 1


def test_a_run_of_text_is_not_continued_with_rewards(tmp_path):
    trained(tmp_path / "run", TINY | {"train.iters": 1})
    settings = {"train.objective": "grpo", "rl.max_tokens": 4, "train.iters": 2}
    with pytest.raises(ResumeRefused, match="train.objective is grpo, but the run has cross-entropy; .* mlxgpt rl"):
        begin(Request(resume=str(tmp_path / "run"), settings=settings), ignore)


def test_rewards_have_no_length_in_tokens(tmp_path):
    trained(tmp_path / "text", TINY | {"train.iters": 1})
    checkpoint = tmp_path / "text/checkpoint.safetensors"
    rewards = {"train.objective": "grpo", "rl.max_tokens": 4, "model.dropout": 0}
    (tmp_path / "reward.py").write_text("def reward(prompt, text):\n    return {'a': text.count('e')}\n")
    rewards["rl.reward"] = str(tmp_path / "reward.py")
    session = Session(rl_request(rewards | {"train.iters": 1}, checkpoint=checkpoint, out=tmp_path / "rl"), ignore)
    assert len(list(session)) > 0
    given = {"train.tokens": 5}
    for request in (
        Request(preset="tiny", settings=TINY | rewards | given),
        Request(fine_tune=checkpoint, settings=rewards | given),
        Request(resume=str(tmp_path / "rl"), settings=given),
        rl_request(given, checkpoint=checkpoint),
        rl_request(given, resume=str(tmp_path / "rl")),
    ):
        with pytest.raises(UserError, match="train.tokens=5: .* give the number of updates with --iters"):
            begin(request, ignore)


@pytest.fixture
def run(tmp_path):
    """A run of 3,000 tokens in updates of 4 sequences."""
    trained(tmp_path / "run", TINY | {"train.tokens": 3000, "train.batch_size": 4})
    return tmp_path / "run"


def resumed(run, recipe=None, **settings):
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return begin(Request(resume=str(run), recipe=recipe, settings=settings_of(given.items())), ignore)


@pytest.mark.parametrize("same", [{}, {"train__tokens": 3000}, {"train__batch_size": 4}, {"train__tokens": 100}])
def test_a_resumed_run_that_has_its_length_is_complete(run, same):
    start = resumed(run, **same)
    assert start.is_complete and start.header.tokens == start.header.step * 4 * BLOCK <= 3000


@pytest.mark.parametrize("shorter", [{"train.iters": 2}, {"train.tokens": 5}, {"train.minutes": 1e-6}])
def test_a_run_that_is_beyond_the_length_that_is_asked_for_stays_as_it_is(tmp_path, shorter):
    folder = tmp_path / "run"
    settings = TINY | {"train.iters": 20, "train.eval_windows": 2, "train.sample_every": 0}
    session = Session(Request(settings=settings_of(settings.items()), out=folder), ignore)
    for report in session:
        if isinstance(report, StepReport) and report.step == 5:
            session.stop()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    request = Request(resume=str(folder), settings=settings_of(shorter.items()))
    if "train.minutes" in shorter:
        with pytest.raises(UserError, match="train.minutes=1e-06: the run has already taken .* minutes; give more"):
            Session(request, ignore)
    else:
        stopped = Session(request, ignore)
        assert stopped.start.is_complete and not list(stopped)
        assert "nothing to do; to train further, give --iters 6 or more, or --tokens " in stopped.start.end()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not begin(Request(resume=str(folder)), ignore).is_complete


def test_a_resumed_run_counts_the_tokens_that_it_was_trained_on(run):
    start = resumed(run)
    for batch, more in ((4, {}), (8, {"train__batch_size": 8})):
        config = resumed(run, train__tokens=6000, **more).header.config
        assert config.train.iters == start.header.step + (6000 - start.header.tokens) // (batch * BLOCK)
        assert config.optimizer == start.header.config.optimizer
    _, reports = trained(None, {"train.tokens": 6000}, resume=str(run))
    assert 6000 - 4 * BLOCK < [r.tokens for r in reports if isinstance(r, StepReport)][-1] <= 6000


def test_updates_and_minutes_replace_the_tokens_of_a_resumed_run(run):
    for settings in ({"train__iters": 900}, {"train__minutes": 1.0}):
        config = resumed(run, **settings).header.config
        assert config.train.tokens == 0 and config.train.iters >= 900


def test_the_length_of_a_recipe_replaces_that_of_a_resumed_run(run, tmp_path):
    (tmp_path / "updates.toml").write_text("[train]\niters = 320\n")
    (tmp_path / "tokens.toml").write_text("[train]\ntokens = 6000\n")
    assert resumed(run, str(tmp_path / "updates.toml")).header.config.train.tokens == 0
    start = resumed(run, str(tmp_path / "tokens.toml"))
    assert start.header.config.train.iters == 3000 // (4 * BLOCK) + (6000 - start.header.tokens) // (4 * BLOCK)


def test_a_length_replaces_the_time_limit_of_a_resumed_run(tmp_path):
    trained(tmp_path / "run", TINY | {"train.minutes": 0.01})
    steps = store.load(tmp_path / "run/checkpoint.safetensors").header.step
    for length in ({"train__tokens": 10**6}, {"train__iters": steps + 100}):
        config = resumed(tmp_path / "run", **length).header.config
        assert config.train.minutes == 0 and config.train.iters > steps
    assert resumed(tmp_path / "run", train__tokens=10**6, train__minutes=2.0).header.config.train.minutes == 2


def test_another_batch_plans_the_time_limit_again(tmp_path):
    trained(tmp_path / "run", TINY | {"train.minutes": 0.06, "train.tokens": 10**7, "train.batch_size": 2})
    assert resumed(tmp_path / "run").header.planned
    assert not resumed(tmp_path / "run", train__batch_size=3).header.planned


@pytest.mark.parametrize("text", ["a", "ab\n" * 5])
def test_a_text_that_is_too_short_is_refused(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    settings = TINY | {"train.tokens": 500, "data.corpus": (str(tmp_path / "text.txt"),)}
    with pytest.raises(UserError, match="give a longer text"):
        Session(Request(settings=settings_of(settings.items()), out=tmp_path / "run"), ignore)


def test_tokens_and_updates_together_are_refused():
    with pytest.raises(UserError, match="both give the length"):
        settings_of([("train.tokens", 5), ("train.iters", 5)])


def test_tokens_and_updates_in_one_file_are_refused(tmp_path):
    (tmp_path / "recipe.toml").write_text("[train]\niters = 5\ntokens = 1000\n")
    with pytest.raises(UserError, match="recipe.toml: train.iters=5 and train.tokens=1000 both give the length"):
        resolve(None, str(tmp_path / "recipe.toml"))
