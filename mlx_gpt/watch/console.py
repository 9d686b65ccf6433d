"""Shows the reports of a run: with a live panel on a terminal, otherwise as plain lines."""

import io
import math
import sys
from collections import deque

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlx_gpt.train.reports import (
    Alert,
    EvalReport,
    Plan,
    Report,
    SampleReport,
    SaveReport,
    StartReport,
    StepReport,
    StopReport,
)
from mlx_gpt.watch.chart import LossChart

# StopReport.reason -> the text that is shown for it.
STOPPED = {
    "iters": "finished",
    "minutes": "time budget used up",
    "patience": "stopped early for lack of a lower validation loss",
    "signal": "interrupted and saved",
    "diverged": "diverged",
    "ranks": "starting again with more processes",
}
LARGE_SHARE = 0.2  # a note is printed if evaluations take a larger share of the time than this

CHART_LINES = 6  # height of the chart of the losses
CHART_COLUMNS = 78  # its greatest width
ROOM = 20  # lines of a terminal that shows the chart; on a smaller one, the panel would leave no room for other lines
MAX_ALERTS = 2  # the newest alerts in the panel


class Terminal(Console):
    """A console on stdout that ends no run because of its output.

    It raises BrokenPipeError, instead of exiting, when the reader has closed the pipe. Characters that the encoding of
    stdout does not have, as in a sample, are replaced by question marks.
    """

    def __init__(self, **options):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        super().__init__(**options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class RunConsole:
    """Shows each report when it arrives. `close()` restores the terminal."""

    def __init__(
        self, console: Console, *, iters: int | None, tokens_per_step: int, log_every: int, patience: int, peak_memory
    ):
        """Starts the live panel if the console is a terminal.

        Args:
            console: Where to print.
            iters: Total number of updates of the run. None if it is not known before a Plan report gives it.
            tokens_per_step: Number of tokens of the first update.
            log_every: Number of updates between plain lines.
            patience: Number of evaluations without a new best loss after which the run stops; 0 if it does not.
            peak_memory: A function without arguments that returns the peak memory so far, in bytes.
        """
        self.console = console
        self._iters, self._tokens_per_step = iters, tokens_per_step
        self._log_every, self._patience, self._peak_memory = log_every, patience, peak_memory
        self._step: StepReport | None = None
        self._eval: EvalReport | None = None
        self._seconds: deque[float] = deque(maxlen=20)
        self._tokens: deque[int] = deque(maxlen=20)
        self._chart, self._alerts = LossChart(), deque(maxlen=MAX_ALERTS)
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=4)
            self._live.start()

    def close(self) -> None:
        """Removes the live panel, if there is one."""
        if self._live:
            self._live.stop()
            self._live = None

    def note(self, text: str, style: str = "dim") -> None:
        """Prints a line in a style of rich. On a terminal, the line appears above the live panel."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def show(self, report: Report) -> None:
        """Shows a report. A StopReport also closes the live panel."""
        match report:
            case StepReport():
                if self._step:  # the first update includes compilation, so it does not count for the pace
                    self._seconds.append(report.seconds)
                    self._tokens.append(report.tokens - self._step.tokens)
                self._step = report
                self._chart.add(report.step, report.loss)
                if report.skipped:
                    self.note(
                        f"update {report.step} skipped: its loss or gradient is not finite ({report.skipped} in a row)",
                        "yellow",
                    )
                if not self._live and report.step % self._log_every == 0:
                    self.note(self._line(), "")
            case StartReport():
                self.note(
                    f"start @{report.step}: loss {report.start_loss:.4f}  ppl {_perplexity(report.ppl)}  over "
                    f"{report.eval_tokens:,} validation tokens in {report.seconds:.1f}s"
                )
            case EvalReport():
                self._eval = report
                self._chart.add(report.step, report.loss, validation=True)
                mark = "  * best" if report.is_best else ""
                averaged = f" (averaged weights; current weights {report.raw_loss:.4f})" if report.averaged else ""
                metrics = "".join(f"{name} {text}  " for name, text in _metrics(report).items())
                self.note(
                    f"eval @{report.step}: loss {report.loss:.4f}{averaged}  ppl {_perplexity(report.ppl)}  "
                    f"{report.bits_per_byte:.3f} bits/byte  {metrics}over {report.eval_tokens:,} tokens "
                    f"in {report.seconds:.1f}s{_shares(report.shares)}{mark}",
                    "bold green" if report.is_best else "",
                )
            case SampleReport():
                self.note(f"--- sample @{report.step} " + "-" * 40)
                self.console.print(Text(report.text), soft_wrap=True)
                self.note("-" * 56)
            case Alert():
                self._alerts.append(report)
                self.note(f"alert @{report.step}: {_alert(report)}; {report.advice}", "bold yellow")
            case SaveReport(error=None):
                self.note(f"saved {report.path} @{report.step}")
            case SaveReport():
                self.note(f"not saved: {report.error}", "bold yellow")
            case Plan():
                self._iters = report.iters
                self.note(
                    f"planned {report.iters:,} steps of {report.step_seconds * 1000:.0f} ms each, "
                    f"{report.warmup_steps} of them warm-up, and an evaluation every {report.eval_every:,}"
                )
                if report.eval_share > LARGE_SHARE:
                    self.note(
                        f"evaluations take {report.eval_share:.0%} of the time; a larger --eval-every makes them rarer"
                    )
            case StopReport():
                self.close()
                self._summary(report)

    def _summary(self, report: StopReport) -> None:
        average = report.seconds * 1000 / report.steps if report.steps else 0.0
        best = f" | Best: {report.best_loss:.4f}" if math.isfinite(report.best_loss) else ""
        best += f" @{report.best_step}" if best and report.best_step else ""
        self.note(f"{STOPPED[report.reason]} at step {report.step:,}", "bold")
        self.note(
            f"Total time: {report.elapsed:.1f}s | Avg: {average:.0f}ms/iter ({report.steps} iters) | "
            f"{report.tokens:,} tokens{best} | Peak: {report.peak_memory / 1e9:.2f}GB",
            "bold",
        )

    # Values that the plain line and the panel share.

    def _pace(self) -> tuple[float, float, str]:
        """Milliseconds per update, tokens per second, and the remaining time as text.

        All three are based on the mean duration of the last 20 updates.
        """
        seconds = sum(self._seconds) / len(self._seconds) if self._seconds else self._step.seconds
        tokens = sum(self._tokens) / len(self._tokens) if self._tokens else self._tokens_per_step
        eta = _clock((self._iters - self._step.step) * seconds) if self._iters else "?"
        return seconds * 1000, tokens / seconds, eta

    def _line(self) -> str:
        step, last = self._step, self._eval
        ms, rate, eta = self._pace()
        parts = [f"Iter {step.step:4d}/{self._iters or '?'}", f"Loss: {step.loss:.4f}"]
        parts += [f"{name}: {value}" for name, value in _metrics(step).items()]
        if last:
            parts.append(f"Val: {last.loss:.4f} (ppl {_perplexity(last.ppl, 1)})")
        others = [f"{rule} {_rate(lr)}" for rule, lr in step.rule_lrs.items() if lr != step.lr]
        parts.append(f"LR: {_rate(step.lr)}" + (f" ({', '.join(others)})" if others else ""))
        if last:
            parts.append(f"Best: {last.best_loss:.4f} @{last.best_step}")
        parts += [
            f"{ms:.0f}ms/iter",
            f"{rate:,.0f} tok/s",
            f"{step.elapsed:.0f}s elapsed",
            f"ETA {eta}",
            f"{self._peak_memory() / 1e9:.2f}GB",
        ]
        if last and self._patience:
            parts.append(
                f"patience {last.bad_evals}/{self._patience}"
                + (f" cuts {last.num_lr_cuts}" if last.num_lr_cuts else "")
            )
        return " | ".join(parts)

    def _panel(self):
        if not self._step:
            return Text("computing the first update ...", style="dim")
        step, last = self._step, self._eval
        ms, rate, eta = self._pace()
        facts = {
            "step": f"{step.step:,}/{self._iters or '?'}",
            "loss": f"{step.loss:.4f}",
            **_metrics(step),
            "val": f"{last.loss:.4f}" if last else "-",
            "ppl": f"{_perplexity(last.ppl)}" if last else "-",
            "best": f"{last.best_loss:.4f} @{last.best_step}" if last else "-",
            **({f"lr {rule}": f"{lr:.2e}" for rule, lr in step.rule_lrs.items()} or {"lr": f"{step.lr:.2e}"}),
            "ms/iter": f"{ms:.0f}",
            "tok/s": f"{rate:,.0f}",
            "ETA": eta,
            "peak": f"{self._peak_memory() / 1e9:.2f} GB",
            "patience": f"{last.bad_evals if last else 0}/{self._patience}" if self._patience else "off",
        }
        cells = [Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in facts.items()]
        panel = Table.grid(expand=True)
        panel.add_row(ProgressBar(total=self._iters, completed=step.step))
        panel.add_row(Columns(cells, padding=(0, 2)))  # as many rows as the width of the terminal needs
        overflow = "crop" if self.console.options.ascii_only else "ellipsis"
        alerts = [Text(f"! {_alert(alert)}", "yellow", no_wrap=True, overflow=overflow) for alert in self._alerts]
        return Group(panel, *self._drawn(), *alerts)

    def _drawn(self) -> list[Text]:
        """The lines of the chart; [] if the terminal is too small."""
        width = min(self.console.width, CHART_COLUMNS)
        if self.console.height < ROOM or width < CHART_COLUMNS // 2:
            return []
        return self._chart.render(width, CHART_LINES, self.console.options.ascii_only)


def _alert(alert: Alert) -> str:
    since = f" since {alert.since:,}" if alert.since < alert.step else ""
    return f"{alert.kind}{since}: {alert.evidence}"


def _perplexity(ppl: float, digits: int = 2) -> str:
    """Formats a perplexity with this number of decimals, or as 1.3e+09 if it is large."""
    return f"{ppl:.{digits}f}" if ppl < 1e6 else f"{ppl:.3g}"


def _rate(lr: float) -> str:
    """Formats a learning rate with six decimals, as randyGPT does, or as 6.25e-07 if these lose more than 1% of it."""
    fixed = f"{lr:.6f}"
    return fixed if abs(float(fixed) - lr) <= 0.01 * lr else f"{lr:.2e}"


def _metrics(report: StepReport | EvalReport) -> dict[str, str]:
    """Formats the metrics of a report by name.

    The cross-entropy is left out if it equals the loss up to rounding, and so are metrics with a dot in their names.
    """
    shown = {name: f"{value:.4f}" for name, value in report.metrics.items() if "." not in name}
    if math.isclose(report.loss, report.metrics.get("ce", math.nan), rel_tol=1e-5):
        shown.pop("ce")
    return shown


def _shares(shares: dict[str, float]) -> str:
    """Formats shares without a dot in their names as "  zeros 31% changed 2.1%". Returns "" if there are none."""
    shown = [(name, 100 * share) for name, share in shares.items() if "." not in name]
    texts = [f"{name} {percent:.0f}%" if percent >= 9.95 else f"{name} {percent:.1f}%" for name, percent in shown]
    return "  " * bool(texts) + " ".join(texts)


def _clock(seconds: float) -> str:
    """Formats a duration as M:SS, or as H:MM:SS from one hour on."""
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
