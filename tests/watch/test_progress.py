"""The progress and the state of a run, from its reports."""

import pytest
from reporting import evaluation, step, stop

from mlx_gpt.train.reports import Alert, FailureReport
from mlx_gpt.watch.metrics import line_of
from mlx_gpt.watch.progress import Progress

FAILURE = FailureReport(step=9, error="OutOfRoom", message="full")
RESUMED = {"report": "start", "step": 9}


def progress_of(*reports):
    progress = Progress()
    for report in reports:
        progress.add(report if isinstance(report, dict) else line_of(report))
    return progress


@pytest.mark.parametrize(
    "reports, state",
    [
        ([], "unknown"),
        ([{"step": 4, "loss": 3.0, "grad_norm": 1.0}], "unknown"),  # mlxgpt 0.1
        ([RESUMED], "killed"),
        ([step(1)], "killed"),
        *(([step(1), stop(reason)], "finished") for reason in ("iters", "minutes", "patience")),
        ([stop("signal")], "stopped"),
        ([stop("diverged")], "diverged"),
        ([stop("no such reason")], "unknown"),
        ([step(1), FAILURE], "failed"),
        ([stop("signal"), RESUMED], "killed"),
        ([FAILURE, step(10)], "killed"),
        ([stop("iters"), Alert(kind="disk", step=9, since=9, evidence="e", advice="a")], "finished"),
    ],
)
def test_the_state_is_that_of_the_last_process(reports, state):
    progress = progress_of(*reports)
    assert progress.state(False) == state and progress.state(True) == "training"


def test_the_end_of_a_file_tells_what_the_whole_file_tells():
    """The last update, evaluation and stop report suffice for the progress, but not for the speed."""
    reports = [*(step(n) for n in range(1, 8)), evaluation(7, loss=2.5), step(8)]
    reports.append(evaluation(8, loss=2.75, best_loss=2.5, best_step=7))
    whole, end = progress_of(*reports), progress_of(*reports[-2:])
    assert end.best["val_loss"] == whole.best["val_loss"] == 2.5 and end.best["step"] == whole.best["step"] == 7
    named = ("step", "tokens", "elapsed", "loss", "val_loss", "iters")
    mine, others = whole.summary({"train": {"iters": 20}}), end.summary({"train": {"iters": 20}})
    assert [mine[name] for name in named] == [others[name] for name in named] and mine["iters"] == 20
    assert mine["tokens_per_second"] == 200 and others["tokens_per_second"] is None
