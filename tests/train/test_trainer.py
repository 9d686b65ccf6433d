"""The loop: a resumed run is the unbroken run, and a run ends when and how it should."""

import itertools
import sys
import time

import numpy as np
import pytest
from covering import covering
from training import assert_same_state, timeless, tokens, trainer, validation

from mlx_gpt.checkpoint import store
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import DeviceTimeout, OutOfRoom
from mlx_gpt.optim.optimizers import RULES
from mlx_gpt.train import evaluate
from mlx_gpt.train.reports import EvalReport, Plan, SampleDue, SaveReport, StartReport, StepReport, StopReport
from mlx_gpt.train.saving import BEST, LATEST
from mlx_gpt.train.source import TextSource
from mlx_gpt.train.step import make_step
from mlx_gpt.train.trainer import MAX_BAD_STEPS, Trainer


@pytest.fixture(scope="module")
def config(tiny_config):
    """Short evaluations, an early plateau and a cut, so that all of a run's state is in play."""
    return tiny_config.replace(
        {
            "train.iters": 24,
            "train.eval_every": 3,
            "train.patience": 2,
            "optimizer.lr_cuts": 50,
            "optimizer.learning_rate": 0.02,
            "optimizer.muon_lr_scale": 1.0,
            "optimizer.warmup_steps": 4,
        }
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, config):
    """Reports, last checkpoint and folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("unbroken")
    return list(trainer(folder, config).run()), store.load(folder / LATEST), folder


@pytest.mark.parametrize("lag, cuts", [(0, (1, 9, 23)), (1, (4, 12, 17))])
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path, config, unbroken, lag, cuts):
    """Cut in the warm-up, at an evaluation, between evaluations, before a cut of the rate and after, at the end."""
    reports, final, _ = unbroken
    assert final.header.num_lr_cuts > 0  # the plateau state matters in this run
    for cut in cuts:
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        first, seen = trainer(folder, config, lag=lag), []
        for report in first.run():
            seen.append(report)
            if isinstance(report, StepReport) and report.step == cut:
                first.stop()
        assert seen[-1].reason == "signal" and seen[-1].saved
        part = store.load(folder / LATEST)
        assert cut <= part.header.step <= cut + lag
        seen += trainer(folder, config, part, lag).run()
        assert timeless(seen) == timeless(reports), cut
        assert_same_state(store.load(folder / LATEST), final)


@pytest.mark.slow
def test_a_run_cut_anywhere_is_the_unbroken_run(tmp_path, config, unbroken):
    for cut in range(1, 24):
        for lag in (0, 1):
            (tmp_path / f"{cut}-{lag}").mkdir()
            test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path / f"{cut}-{lag}", config, unbroken, lag, [cut])


def test_two_cuts_and_the_best_file_are_whole_states_too(tmp_path, config, unbroken):
    _, final, folder = unbroken
    best = store.load(folder / BEST)
    assert best.header.step == best.header.best_step < 24
    list(trainer(tmp_path, config, best).run())
    assert_same_state(store.load(tmp_path / LATEST), final)


AVERAGED = [{"name": name, "ema_decay": 0.9} for name in RULES]


@pytest.mark.parametrize("settings, shuffle", covering([*AVERAGED, {"name": "muon"}], [True, False], together=1))
def test_every_optimizer_resumes_bit_for_bit_from_both_files(tmp_path, config, settings, shuffle):
    changes = {f"optimizer.{k}": v for k, v in settings.items()}
    config = config.replace(changes | {"train.patience": 0, "train.iters": 12, "train.shuffle": shuffle})
    folder = tmp_path / "run"
    folder.mkdir()
    first = trainer(folder, config)
    for report in first.run():
        if isinstance(report, StepReport) and report.step == 7:
            first.stop()
    latest, best = store.load(folder / LATEST), store.load(folder / BEST)
    assert (latest.header.step, best.header.step <= 6) == (7, True)
    finals = []
    for start in (None, latest, best):
        list(trainer(folder, config, start).run())
        finals.append(store.load(folder / LATEST))
    assert_same_state(finals[0], finals[1])
    assert_same_state(finals[0], finals[2])


def test_the_average_is_evaluated_and_saved_as_best_where_it_is_better(tmp_path, config):
    """At a rate that throws the weights about, their average is better; the file holds it, and both losses are told."""
    config = config.replace({"optimizer.ema_decay": 0.9, "optimizer.learning_rate": 0.1, "train.patience": 0})
    made = trainer(tmp_path, config)
    evals = {r.step: r for r in made.run() if isinstance(r, EvalReport)}
    best = store.load(tmp_path / BEST)
    report = evals[best.header.step]
    assert best.header.averaged and report.loss < report.raw_loss and best.header.best_loss == report.loss
    for checkpoint, loss in ((best, report.loss), (best.as_trained(), report.raw_loss)):
        weights = {k: mx.array(w) for k, w in checkpoint.weights.items()}
        assert validation(made.model, config)(weights, best.header.step).loss == loss


def test_the_loss_before_the_first_update_is_reported_by_every_process(tmp_path, config):
    """Of the weights it starts from. It is no evaluation: the test of resuming shows that it changes nothing."""
    config = config.replace({"train.iters": 12, "train.patience": 0})
    whole, seen = trainer(tmp_path, config), []
    for report in whole.run():
        seen.append(report)
        if isinstance(report, StepReport) and report.step == 7:
            whole.stop()
    part = store.load(tmp_path / LATEST)
    resumed = list(trainer(tmp_path, config, part).run())
    fresh = trainer(tmp_path, config)
    weights_at = {0: fresh.state["weights"], 7: {k: mx.array(w) for k, w in part.weights.items()}}
    for reports, step in ((seen, 0), (resumed, 7)):
        assert [r for r in reports if isinstance(r, StartReport)] == reports[:1] and reports[0].step == step
        assert reports[0].start_loss == validation(fresh.model, config)(weights_at[step], step).loss
    assert [r.step for r in resumed if isinstance(r, EvalReport)] == [9, 12]
    first = list(trainer(tmp_path, config.replace({"train.eval_at_start": True})).run())
    assert isinstance(first[0], EvalReport) and (first[0].step, first[0].loss) == (0, seen[0].start_loss)
    assert not [r for r in first if isinstance(r, StartReport)]


def test_the_loss_before_the_first_update_is_that_of_a_few_windows(tmp_path, config, monkeypatch):
    monkeypatch.setattr(evaluate, "START_WINDOWS", 2)
    first = next(iter(trainer(tmp_path, config).run()))
    assert isinstance(first, StartReport) and first.eval_tokens == 2 * config.model.block_size


def test_a_run_does_not_depend_on_the_lanes_of_earlier_work(tmp_path, config):
    """Evaluations are traced before the first step, and must not take the number of lanes that another run left."""
    found = []
    for left in (1, 2, 3):
        (tmp_path / str(left)).mkdir()
        lanes(left)
        found.append(timeless(trainer(tmp_path / str(left), config.replace({"train.iters": 6})).run()))
    assert found[0] == found[1] == found[2]


def test_losses_are_reported_in_order_each_once(unbroken):
    reports, *_ = unbroken
    assert [r.step for r in reports if isinstance(r, StepReport)] == list(range(1, 25))
    assert [r.step for r in reports if isinstance(r, EvalReport)] == list(range(3, 25, 3))
    assert isinstance(reports[-1], StopReport) and reports[-1].reason == "iters"
    assert sum(isinstance(r, StopReport) for r in reports) == 1


def test_the_best_file_is_the_best_evaluation(unbroken):
    reports, final, folder = unbroken
    evals = [r for r in reports if isinstance(r, EvalReport)]
    best = min(evals, key=lambda r: r.loss)
    assert (final.header.best_loss, final.header.best_step) == (best.loss, best.step)
    assert store.load(folder / BEST).header.step == best.step


def test_patience_cuts_the_rate_and_then_stops_the_run(tmp_path, config):
    """Random tokens can't be learned: the plateau comes at once."""
    config = config.replace({"train.iters": 2000, "train.eval_every": 1, "optimizer.lr_cuts": 3})
    reports = list(trainer(tmp_path, config).run())
    evals = [r for r in reports if isinstance(r, EvalReport)]
    assert reports[-1].reason == "patience" and evals[-1].lr_cuts == 3 and evals[-1].bad_evals == 2
    cuts = [r.lr_cuts for r in evals]
    assert cuts == sorted(cuts) and set(cuts) == {0, 1, 2, 3}
    since_best = 0
    for r in evals:  # bad_evals counts evaluations since the best or the last cut
        since_best = 0 if r.is_best else since_best + 1
        if since_best == 2 and r.bad_evals == 0:
            since_best = 0
        assert r.bad_evals == since_best


def test_iters_is_a_target(tmp_path, config):
    short = config.replace({"train.iters": 6, "train.patience": 0})
    list(trainer(tmp_path, short).run())
    checkpoint = store.load(tmp_path / LATEST)
    reports = list(trainer(tmp_path, short, checkpoint).run())
    assert not [r for r in reports if isinstance(r, StepReport)] and reports[-1].steps == 0


def test_a_time_budget_becomes_a_number_of_iterations_and_ends_the_run(tmp_path, config):
    config = config.replace(
        {"train.iters": (1 << 32) - 1, "train.minutes": 1.5 / 60, "train.patience": 0, "train.eval_every": 1000}
    )
    start = time.perf_counter()
    reports = list(trainer(tmp_path, config).run())
    plan = next(r for r in reports if isinstance(r, Plan))
    assert 6 < plan.iters < 100_000 and reports[-1].step <= plan.iters
    windows, sequences = 200 // config.model.block_size, config.train.sequences_per_step  # those of an evaluation
    evaluation = windows / sequences / 2 / 1000  # in steps, per step
    assert plan.eval_share == pytest.approx(evaluation / (1 + evaluation), abs=0.002)
    assert reports[-1].reason in ("iters", "minutes") and time.perf_counter() - start < 30
    assert store.load(tmp_path / LATEST).header.planned


def test_steps_that_are_not_finite_are_counted_and_end_the_run(tmp_path, config):
    config = config.replace({"train.eval_every": 4, "train.patience": 0})
    t, seen = trainer(tmp_path, config), []
    for report in t.run():
        seen.append(report)
        if isinstance(report, SaveReport) and report.step == 4:
            good = (tmp_path / BEST).read_bytes()
            t.state["weights"]["wpe.weight"] = t.state["weights"]["wpe.weight"] * float("nan")
    assert seen[-1].reason == "diverged"
    skipped = [r.skipped for r in seen if isinstance(r, StepReport) and r.skipped]
    assert skipped[:MAX_BAD_STEPS] == list(range(1, MAX_BAD_STEPS + 1))
    assert (tmp_path / BEST).read_bytes() == good and not (tmp_path / LATEST).exists()


def test_a_full_disk_does_not_end_the_run(tmp_path, config, monkeypatch):
    def full(path, checkpoint):
        raise OutOfRoom("no space left")

    save = store.save
    monkeypatch.setattr(store, "save", full)
    seen = []
    for report in trainer(tmp_path, config).run():
        seen.append(report)
        if isinstance(report, EvalReport) and report.step == 21:
            monkeypatch.setattr(store, "save", save)
    assert any(r.error for r in seen if isinstance(r, SaveReport)) and seen[-1].saved
    assert store.load(tmp_path / LATEST).header.step == 24


WATCHDOG = "[METAL] Command buffer execution failed: Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallback...)"


def fail_at(monkeypatch, step, error):
    """Makes the step of trainers that are built from now on raise an error when it is called for the step-th time."""
    calls = itertools.count(1)

    def failing(*arguments):
        compiled = make_step(*arguments)

        def run(*inputs):
            if next(calls) == step:
                raise error
            return compiled(*inputs)

        return run

    monkeypatch.setattr(sys.modules[Trainer.__module__], "make_step", failing)


@pytest.mark.parametrize(
    "error, kind",
    [
        (RuntimeError(WATCHDOG), DeviceTimeout),
        (RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity"), DeviceTimeout),
        (RuntimeError("[malloc] Unable to allocate 8 bytes"), OutOfRoom),
        (MemoryError(), OutOfRoom),
    ],
)
def test_a_run_that_the_device_ends_is_saved_and_resumes_bit_for_bit(
    tmp_path, config, unbroken, monkeypatch, error, kind
):
    """With a lag, the state after the last step that was read is known to be complete, and is saved."""
    reports, final, _ = unbroken
    fail_at(monkeypatch, 15, error)
    seen = []
    with pytest.raises(kind, match="lower --batch"):
        for report in trainer(tmp_path, config, lag=1).run():
            seen.append(report)
    monkeypatch.undo()
    assert isinstance(seen[-1], SaveReport) and seen[-1].step == 13 and seen[-1].error is None
    seen += trainer(tmp_path, config, store.load(tmp_path / LATEST), lag=1).run()
    assert timeless(seen) == timeless(reports)
    assert_same_state(store.load(tmp_path / LATEST), final)


def test_an_error_that_is_not_the_devices_is_not_explained(tmp_path, config, monkeypatch):
    fail_at(monkeypatch, 5, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(trainer(tmp_path, config, lag=1).run())


def test_without_a_complete_state_the_last_save_stays(tmp_path, config, monkeypatch):
    """Without a lag, MLX may have reused the memory of the state before the step that failed."""
    fail_at(monkeypatch, 8, RuntimeError(WATCHDOG))
    with pytest.raises(DeviceTimeout):
        list(trainer(tmp_path, config).run())
    assert not (tmp_path / LATEST).exists() and store.load(tmp_path / BEST).header.step in (3, 6)


def test_random_windows_estimate_the_same_way_each_time(tmp_path, config):
    """The seed's evaluation: at the start too, of so many windows, decided by seed and step."""
    config = config.replace({"train.eval_windows": 7, "train.eval_at_start": True, "train.patience": 0})

    def evals():
        return [r for r in trainer(tmp_path, config).run() if isinstance(r, EvalReport)]

    first = evals()
    assert [r.step for r in first] == list(range(0, 25, 3)) and {r.eval_tokens for r in first} == {7 * 64}
    assert [r.loss for r in first] == [r.loss for r in evals()]


@pytest.mark.parametrize("every, steps", [(0, []), (-1, [3, 6, 9, 10]), (4, [4, 8]), (5, [5, 10])])
def test_samples_are_due_when_asked_for(tmp_path, config, every, steps):
    config = config.replace({"train.iters": 10, "train.sample_every": every, "train.patience": 0})
    t, found = trainer(tmp_path, config), []
    for report in t.run():
        if isinstance(report, SampleDue):
            found.append(report.step)
            assert all(mx.array_equal(w, t.state["weights"][k]) for k, w in t.model.weights().items())
    assert found == steps


def test_the_seconds_of_a_step_leave_out_the_text_that_was_generated_before_it(tmp_path, config, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    config = config.replace({"train.iters": 4, "train.sample_every": 2})
    seconds = []
    for report in trainer(tmp_path, config).run():
        if isinstance(report, StepReport):
            seconds.append(report.seconds)
        now += 100 if isinstance(report, SampleDue) else 0
    assert seconds == [0, 0, 0, 0] and now == 200


def test_the_seed_decides_everything(tmp_path, config):
    def losses(seed):
        reports = trainer(tmp_path, config.replace({"train.seed": seed, "train.iters": 4})).run()
        return [r.loss for r in reports if isinstance(r, StepReport)]

    assert losses(1) == losses(1) != losses(2)


def test_a_batch_may_have_another_number_of_rows_than_the_settings_say(tmp_path, config):
    """A source may choose its batches by settings of its own. All of their rows are trained on."""
    seen = []

    class Longer(TextSource):
        def next(self, step, weights):
            return [np.concatenate([a, a]) for a in super().next(step, weights)]

        def gather(self, *arrays):
            seen.append(len(arrays[0]))
            return super().gather(*arrays)

    windows = Windows(tokens(800, 0), config.model.block_size)
    list(trainer(tmp_path, config.replace({"train.iters": 1}), source=Longer(windows, config.train)).run())
    assert set(seen) == {2 * config.train.sequences_per_step}
