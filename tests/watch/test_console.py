"""A run on the terminal."""

import io
import re

import pytest
from reporting import evaluation, step, stop
from rich.console import Console

from mlx_gpt.train.reports import Alert, Plan, SampleReport, SaveReport, StartReport
from mlx_gpt.watch.console import STOPPED, RunConsole, Terminal


def shown(reports, terminal=False, iters=100, width=110):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False)
    view = RunConsole(console, iters=iters, tokens_per_step=100, log_every=2, patience=5, peak_memory=lambda: 2 * 10**9)
    for report in reports:
        view.show(report)
    view.close()
    return out.getvalue()


def test_plain_lines_say_everything_and_have_no_escapes():
    text = shown([*(step(n) for n in range(1, 5)), evaluation(4), step(5), step(6), stop("iters")])
    assert "\x1b" not in text and text.count("Iter ") == 3
    line = next(line for line in text.splitlines() if "Iter    6/100" in line)
    for part in ("Loss: 3.5000", "Val: 3.0000 (ppl 20.1)", "LR: 0.001000", "Best: 3.0000 @4", "500ms/iter", "200 tok/s",
                 "ETA 0:47", "2.00GB", "patience 0/5"):  # fmt: skip
        assert part in line
    assert "Total time: 4.5s | Avg: 500ms/iter (9 iters)" in text


def test_the_live_panel_shows_all_its_facts():
    text = shown([step(1), step(2), evaluation(2), step(3)], terminal=True)
    for part in ("step", "3/100", "loss", "3.5000", "val", "best", "lr", "ms/iter", "tok/s", "ETA", "peak", "patience"):
        assert part in text


def test_the_panel_of_a_narrow_terminal_shows_every_number():
    names = ("reward", "success", "distinct", "length", "kl", "H", "H-CE", "clipped", "max_load", "min_load")
    metrics = {name: 10 + i / 8 for i, name in enumerate(names)}
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown([step(1, metrics=metrics)], terminal=True, width=60))
    for name, value in metrics.items():
        assert f"{name} {value:.4f}" in text
    for part in ("step 1/100", "ms/iter 500", "tok/s 200", "peak 2.00 GB", "patience 0/5"):
        assert part in text


ALERT = Alert(kind="plateau", step=9, since=4, evidence="the loss is 2 after 6 evaluations " * 4, advice="stop it")


def panel(reports, width=80, height=30):
    """The last lines that a terminal of this size shows."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, highlight=False)
    view = RunConsole(console, iters=100, tokens_per_step=100, log_every=2, patience=5, peak_memory=lambda: 10**9)
    for report in reports:
        view.show(report)
    start = out.tell()
    view._live.refresh()
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", out.getvalue()[start:])
    view.close()
    return [line.rstrip() for line in text.replace("\r", "").splitlines()]


@pytest.mark.parametrize("width", [80, 60, 120])
def test_the_panel_has_a_chart_and_the_newest_alerts_and_fits_the_terminal(width):
    reports = [*(step(n, loss=4 - n / 10) for n in range(1, 30)), evaluation(20), ALERT]
    lines = panel(
        [*reports, Alert(kind="disk", step=9, since=9, evidence="1 MB free", advice="free some"), ALERT], width
    )
    assert max(map(len, lines)) <= width
    assert any(0x2800 < ord(c) < 0x2900 for line in lines for c in line)
    assert [line[:25] for line in lines[-2:]] == ["! disk: 1 MB free", "! plateau since 4: the lo"]


def test_a_small_terminal_has_no_chart_and_a_run_without_updates_neither():
    reports = [step(n, loss=4 - n / 10) for n in range(1, 30)]
    for lines in (panel(reports, height=12), panel(reports, width=30), panel([])):
        assert not any(0x2800 < ord(c) < 0x2900 for line in lines for c in line)


def test_an_ascii_terminal_gets_ascii_characters_and_ends_no_run(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    console = Terminal(force_terminal=True, width=80, height=30, highlight=False)
    view = RunConsole(console, iters=100, tokens_per_step=100, log_every=2, patience=5, peak_memory=lambda: 10**9)
    for report in [*(step(n, loss=4 - n / 10) for n in range(1, 30)), evaluation(20), ALERT]:
        view.show(report)
    view._live.refresh()
    view.show(SampleReport(step=9, text="\u0436 \u20ac"))
    view.close()
    text = raw.getvalue().decode("ascii")
    assert " .." in text and "o" in text and "! plateau since 4: the loss is 2 after" in text and "? ?" in text


def test_alerts_and_samples_are_lines_of_their_own():
    text = shown([SampleReport(step=9, text="to be [b]or[/b]"), ALERT])
    assert "--- sample @9" in text and "to be [b]or[/b]" in text
    assert f"alert @9: plateau since 4: {ALERT.evidence}; stop it" in text


def test_a_run_that_is_not_planned_yet_has_no_eta():
    before, after = (
        shown([step(1), step(2)], iters=None),
        shown([Plan(iters=40, step_seconds=0.5), step(2)], iters=None),
    )
    assert "2/?" in before and "ETA ?" in before and "2/40" in after and "ETA 0:19" in after


def test_evaluations_that_take_a_large_share_of_the_time_are_told():
    shares = {share: shown([Plan(iters=40, step_seconds=0.5, eval_share=share)], iters=None) for share in (0.19, 0.57)}
    assert "evaluations" not in shares[0.19]
    assert "evaluations take 57% of the time; a larger --eval-every makes them rarer" in shares[0.57]


def test_the_loss_before_the_first_update_is_shown():
    start = StartReport(step=6, start_loss=4.51211, ppl=91.1, eval_tokens=4096, seconds=0.5)
    assert "start @6: loss 4.5121  ppl 91.10  over 4,096 validation tokens in 0.5s" in shown([start])


def test_statistics_are_shares_in_percent_and_those_of_a_layer_are_not_shown():
    shares = {"zeros": 0.3149, "changed": 0.0208, "layers.0.zeros": 0.25, "all": 1.0}
    line = shown([evaluation(4, shares=shares)])
    assert "in 1.0s  zeros 31% changed 2.1% all 100%  * best" in line
    assert "in 1.0s  * best" in shown([evaluation(4)])


def test_metrics_are_shown_and_the_cross_entropy_only_if_it_is_not_the_loss():
    metrics = {"ce": 3.0, "H": 2.75, "H-CE": -0.25}
    assert "4.300 bits/byte  H 2.7500  H-CE -0.2500  over 50 tokens" in shown([evaluation(4, metrics=metrics)])
    line = shown([step(2, loss=3.0, metrics=metrics), step(4, loss=3.1, metrics=metrics)])
    assert shown([step(2, loss=3.0, metrics=metrics | {"ce": 3.0000004})]) == shown(
        [step(2, loss=3.0, metrics=metrics)]
    )
    assert "Loss: 3.0000 | H: 2.7500 | H-CE: -0.2500 |" in line
    assert "Loss: 3.1000 | ce: 3.0000 | H: 2.7500 | H-CE: -0.2500 |" in line


def test_what_went_wrong_is_said():
    text = shown([step(1, skipped=2), SaveReport(step=1, path="x", error="disk full")])
    assert "update 1 skipped" in text and "2 in a row" in text and "not saved: disk full" in text


@pytest.mark.parametrize("reason", STOPPED)
def test_every_end_has_its_words(reason):
    assert STOPPED[reason] in shown([step(1), stop(reason)])


@pytest.mark.parametrize(
    "lr, shown_as", [(1e-3, "0.001000"), (3e-5, "0.000030"), (6.25e-7, "6.25e-07"), (0.0, "0.000000")]
)
def test_a_small_rate_keeps_its_digits(lr, shown_as):
    text = shown([step(1, lr=lr, rule_lrs={"adamw": lr, "muon": 4 * lr}), step(2, lr=lr)])
    assert f"LR: {shown_as}" in text
