"""Made-up training reports, for tests of the code that shows and stores them."""

from mlx_gpt.train.reports import EvalReport, StepReport, StopReport


def step(n, **changes):
    """Returns the report of step `n`. `changes` replaces its fields."""
    facts = {"loss": 3.5, "grad_norm": 1.0, "lr": 1e-3, "seconds": 0.5, "skipped": 0}
    return StepReport(step=n, tokens=n * 100, elapsed=n * 0.5, **facts | changes)


def evaluation(n, **changes):
    """Returns the report of an evaluation at step `n`. `changes` replaces its fields."""
    loss = changes.get("loss", 3.0)
    facts = {"loss": loss, "raw_loss": loss, "ppl": 20.1, "best_loss": loss, "best_step": n, "bits_per_byte": 4.3}
    return EvalReport(
        step=n, eval_tokens=50, tokens=n * 100, seconds=1.0, elapsed=n, bad_evals=0, num_lr_cuts=0, **facts | changes
    )


def stop(reason):
    """Returns the report of the end of a run at step 9."""
    return StopReport(
        step=9,
        reason=reason,
        tokens=900,
        steps=9,
        seconds=4.5,
        elapsed=4.5,
        best_loss=3.0,
        best_step=8,
        peak_memory=10**9,
        saved=True,
    )
