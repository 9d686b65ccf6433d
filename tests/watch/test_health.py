"""Detectors of ill runs: each finds its own made-up run, and none finds anything in healthy, noisy ones."""

import random

import pytest

from mlx_gpt.watch.health import DETECTORS, Health

SETTINGS = {
    "train": {"iters": 1000, "batch_size": 16, "grad_accum_steps": 1, "eval_every": 20},
    "optimizer": {"learning_rate": 0.003, "schedule": "wsd", "decay_start": 0.6},
}
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen; Winston slipped quickly inside."


def made_up(seed=0, steps=500, **changes):
    """The reports of a healthy run: its loss falls with noise, and every metric that detectors read has noise.

    `changes` has functions (step, value) -> value by the name of a field. A value of None removes the field.
    """
    draw = random.Random(seed)
    yield {"report": "start", "step": 0, "start_loss": 4.2, "memory_limit": 10**9}
    for n in range(1, steps + 1):
        loss = 1.5 + 2.7 * 0.99**n
        step = {"loss": loss * draw.gauss(1, 0.04), "grad_norm": (0.2 if n < 10 else 1.0) * draw.lognormvariate(0, 0.4)}
        step |= {"skipped": 0, "lr": 0.003, "tokens": n * 4096, "seconds": 2 * draw.lognormvariate(0, 0.2)}
        step |= {"elapsed": 2.0 * n, "peak_memory": 7 * 10**8, "experts.idle": draw.choice([0.0, 0.0, 0.0, 0.05])}
        reports = [{"report": "step"} | step]
        if n % 20 == 0:
            value = loss * draw.gauss(1.01, 0.003)
            found = {"val_loss": value, "ce": value, "H": value * draw.uniform(0.9, 1.1), "logits.max": 12.0}
            found |= {"changed": 0.02, "layers.0.changed": 0.01, "streams.spread": 0.2, "elapsed": 2.0 * n}
            words = TEXT.split()
            draw.shuffle(words)
            reports += [{"report": "eval"} | found, {"report": "sample", "text": " ".join(words)}]
            reports += [{"report": "save", "path": "x", "error": None, "num_bytes": 10**7, "free_bytes": 10**9}]
        for report in reports:
            report |= {name: change(n, report.get(name)) for name, change in changes.items() if name in report}
            yield {"step": n} | {name: value for name, value in report.items() if value is not None}


def alerts(lines, settings=SETTINGS):
    health = Health(settings)
    return [alert for line in lines for alert in health.update(line)]


def overfitted(n, loss):
    return loss if n < 200 else loss * (1 + (n - 200) / 300)


def certain(n, entropy):
    return entropy if n < 300 else 0.1


# The kind of an alert -> a change of a run, the step from which on it is ill, and a part of the evidence and advice.
ILL = {
    "loss rises": ("diverging", {"loss": lambda n, x: x * (1 if n < 300 else 1.5)}, 300, "standard deviations", "--lr"),
    "loss explodes": (
        "diverging",
        {"loss": lambda n, x: x * 3},
        1,
        "was 4.2 before the first update",
        "start again with --lr 0.001",
    ),
    "gradients": (
        "diverging",
        {"grad_norm": lambda n, x: x * (1 if n < 300 else 40), "loss": lambda n, x: x * (1 if n < 300 else 1.09)},
        300,
        "the gradient norm rose from",
        "mlxgpt train --resume RUN/best.safetensors --lr 0.001",
    ),
    "skipped": ("diverging", {"skipped": lambda n, x: max(0, n - 300)}, 301, "2 updates in a row", "--lr 0.001"),
    "plateau": ("plateau", {"val_loss": lambda n, x: max(x, 2.2)}, 120, "the validation loss is", "--iters"),
    "overfitting": ("overfitting", {"val_loss": overfitted}, 180, "the training loss fell", "model.dropout=0.1"),
    "certain": ("collapse", {"H": certain}, 300, "an entropy of 0.10 nats", "train.entropy_weight=0.01"),
    "logits": ("collapse", {"logits.max": lambda n, x: x * n / 80}, 440, "the largest logits are 66", "lower --lr"),
    "slow": ("throughput", {"seconds": lambda n, x: x * (1 if n < 300 else 3)}, 282, "tokens/s, and 2,0", "doctor"),
    "memory": ("memory", {"peak_memory": lambda n, x: x + n * 10**6}, 200, "0.90 GB of MLX arrays, 90%", "--batch 8"),
    "disk": ("disk", {"free_bytes": lambda n, x: x - n * 2 * 10**6}, 500, "MB free, for checkpoints of 10.0", "clean"),
    "write": ("disk", {"error": lambda n, x: "disk full" if n == 300 else x}, 300, "written: disk full", "clean"),
    "loop": ("repetition", {"text": lambda n, x: "the cat and " * 40 if n > 300 else x}, 320, "compressed", "penalty"),
    "one": ("collapse", {"text": lambda n, x: "e" * 90 if n > 300 else x}, 320, "100% of the characters", "--lr 0.001"),
    "expert": (
        "dead",
        {"experts.idle": lambda n, x: x if n < 200 else 0.125},
        200,
        "12.5% of the experts",
        "=0.03",
    ),
    "streams": ("dead", {"streams.spread": lambda n, x: x / n}, 20, "differ by 0.010", "model.residual=add"),
    "trits": ("dead", {"changed": lambda n, x: x if n < 200 else 0}, 200, "no trit of the network", "--lr 0.009"),
    "layer": ("dead", {"layers.0.changed": lambda n, x: 0}, 20, "no trit of layers.0 changed in 3", "--lr 0.009"),
}


@pytest.mark.parametrize("name", ILL)
def test_an_ill_run_has_one_alert_that_names_what_is_wrong(name):
    kind, changes, since, evidence, advice = ILL[name]
    found = alerts(made_up(seed=1, **changes))
    assert [alert.kind for alert in found] == [kind]
    (alert,) = found
    assert evidence in alert.evidence and advice in alert.advice
    assert since <= alert.since <= since + 20 and alert.since <= alert.step <= alert.since + 120


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_noisy_run_has_no_alert(seed):
    assert alerts(made_up(seed)) == []


def test_every_detector_is_shown_by_an_ill_run():
    shown = {kind for kind, *_ in ILL.values()} | {"out-of-memory"}
    assert {detector.kind for detector in DETECTORS} == shown


def test_one_bad_batch_or_one_slow_update_is_no_alert():
    once = {"loss": lambda n, x: 9.0 if n == 300 else x, "grad_norm": lambda n, x: 500.0 if n == 300 else x}
    once |= {"seconds": lambda n, x: 600.0 if n == 300 else x, "skipped": lambda n, x: int(n == 300)}
    assert alerts(made_up(**once)) == []


def test_a_validation_loss_that_rises_while_the_training_loss_hardly_falls_is_not_overfitting():
    assert alerts(made_up(val_loss=overfitted, loss=lambda n, x: 2 - 1e-5 * n)) == []


def test_a_plateau_at_the_end_of_a_run_is_its_end():
    lines = list(made_up(val_loss=lambda n, x: max(x, 1.6)))
    assert [alert.kind for alert in alerts(lines)] == ["plateau"]
    ending = SETTINGS | {"train": SETTINGS["train"] | {"iters": 500}}
    assert alerts(lines, ending) == [] == alerts([{"report": "plan", "step": 5, "iters": 500}, *lines])


def test_evaluations_that_are_frequent_are_no_plateau_before_a_tenth_of_the_run():
    lines = list(made_up(val_loss=lambda n, x: max(x, 2.2)))
    longer = SETTINGS | {"train": SETTINGS["train"] | {"iters": 10**4}}
    assert [alert.kind for alert in alerts(lines)] == ["plateau"] and alerts(lines, longer) == []


def test_trits_may_rest_once_the_learning_rate_is_low():
    assert alerts(made_up(changed=lambda n, x: 0, lr=lambda n, x: 1e-5)) == []


def test_what_ended_and_begins_again_is_a_new_alert():
    at = {"error": lambda n, x: "disk full" if n in (100, 120, 300) else x}
    assert [(alert.step, alert.since) for alert in alerts(made_up(**at))] == [(100, 100), (300, 300)]


def test_texts_of_a_prompt_that_are_all_alike_are_told_once():
    lines = [{"report": "step", "step": n, "loss": 0.0, "grad_norm": 1.0, "distinct": 0.12} for n in range(1, 9)]
    settings = {"train": {"objective": "grpo"}}
    (alert,) = alerts(lines, settings)
    assert alert.kind == "collapse" and alert.evidence == "only 12% of the texts of a prompt differ"
    assert alerts([line | {"distinct": 1.0} for line in lines], settings | {"rl": {"group_size": 1}}) == []
    assert len(alerts([line | {"distinct": 0.5} for line in lines], settings | {"rl": {"group_size": 2}})) == 1


def test_a_resumed_run_may_diverge_again():
    """Also soon after the first time, and if it had not become quiet in between."""
    explodes = [*made_up(steps=350, loss=lambda n, x: x * (1 if n < 300 else 3))]
    again = [*made_up(seed=1, steps=450, loss=lambda n, x: x * (1 if n < 400 else 3))]
    resumed = [{"report": "start", "step": 350, "start_loss": 1.6}, *(line for line in again if line["step"] > 350)]
    found = [alert.kind for alert in alerts([*explodes, *resumed])]
    assert found.count("diverging") == 2


def test_a_loss_of_rewards_cannot_diverge():
    noise = random.Random(0)
    lines = [
        {"report": "step", "step": n, "loss": noise.gauss(0, 3), "grad_norm": n**3, "reward": 1} for n in range(400)
    ]
    assert alerts(lines, {}) == []


def test_a_run_that_ended_for_lack_of_memory_is_told():
    failure = {"report": "failure", "step": 30, "error": "OutOfRoom", "message": "out of memory; lower --batch"}
    (alert,) = alerts([*made_up(steps=30), failure])
    assert (alert.kind, alert.step, alert.evidence) == ("out-of-memory", 30, "out of memory; lower --batch")
    assert alert.advice == "mlxgpt train --resume RUN --batch 8 --accum 2"
    assert alerts([failure | {"message": "no space left on the disk"}]) == []


def test_a_run_stalls_after_many_times_its_usual_step_and_only_once():
    health = Health(SETTINGS)
    for line in made_up(steps=30):
        health.update(line)
    assert health.check(59) == []
    (alert,) = health.check(90)
    assert (alert.kind, alert.step) == ("stalled", 30) and "no report for 90 s" in alert.evidence
    assert health.check(500) == []
    for line in list(made_up(steps=31))[-1:]:
        health.update(line)
    assert len(health.check(90)) == 1
    health.update({"report": "stop", "step": 31, "reason": "iters"})
    assert health.check(1e9) == []


def test_a_run_that_compiles_or_evaluates_for_the_first_time_is_not_stalled():
    health = Health(SETTINGS)
    for line in made_up(steps=5):
        health.update(line)
    assert health.check(3600) == []
    for line in [line for line in made_up(steps=20) if line["report"] == "step"][5:]:
        health.update(line)
    assert health.check(500) == [] and len(health.check(700)) == 1
    for last in ({"report": "sampledue", "step": 30}, {"report": "plan", "step": 30, "iters": 30}):
        health = Health(SETTINGS | {"train": {}})
        for line in [*(line for line in made_up(steps=30) if line["report"] == "step"), last]:
            health.update(line)
        assert health.check(500) == [] and len(health.check(700)) == 1


def test_a_process_that_is_gone_had_no_memory_left_if_it_was_near_its_limit():
    for peak, kinds in ((9.5e8, ["out-of-memory"]), (5e8, [])):
        health = Health(SETTINGS)
        for line in made_up(steps=30, peak_memory=lambda n, x, peak=peak: peak):
            health.update(line)
        assert [alert.kind for alert in health.check(1, running=False)] == kinds


@pytest.mark.parametrize("seed", range(3))
def test_damaged_reports_raise_nothing(seed):
    draw = random.Random(seed)
    junk = [None, "x", -1, 0, float("nan"), float("inf"), [], {}, True, 10**30, -1e300, "\ud800" * 60]
    health = Health({"train": {"iters": "many"}, "optimizer": 3, "rl": {"group_size": None}})
    for line in made_up(steps=300):
        for name in draw.sample(sorted(line), 3):
            if name != "report" or draw.random() < 0.1:
                line[name] = draw.choice(junk)
        health.update(line)
        health.check(draw.choice([0, 1e9]))


def test_lines_of_version_0_1_and_alerts_in_the_file_are_read():
    lines = [{k: v for k, v in line.items() if k != "report"} for line in made_up(val_loss=overfitted)]
    assert [alert.kind for alert in alerts(lines)] == ["overfitting"]
    assert alerts([{"report": "alert", "step": 3, "kind": "disk"}, {"report": "new", "step": 4}, {}]) == []
