"""Compares runs: settings that differ, losses, speed, and loss curves."""

import math
import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import current_names
from mlx_gpt.errors import UserError
from mlx_gpt.parse import read_toml
from mlx_gpt.watch.series import Series
from mlx_gpt.watch.tail import all_reports, has_numbers, number

FORMATS = (".png", ".svg", ".pdf")
MAX_THRESHOLDS = 6
# Differences between neighbouring thresholds, in nats.
ROUND_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

LARGEST = 1e15  # losses, tokens and seconds beyond this come from a damaged file

# The fields that a line of metrics.jsonl needs to be used as an evaluation or as an update.
EVALUATION = ("step", "val_loss", "tokens", "elapsed")
UPDATE = ("step", "tokens", "elapsed", "seconds")
CURVE = ("loss", "tokens", "elapsed")

# Colours of Okabe and Ito, which colour-blind people can tell apart, and dash patterns. Each pair is used once in 24
# runs.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8f6400")
DASHES = ("-", "--", ":")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is compared of a run: its settings, its evaluations, and its speed.

    Attributes:
        name: Path of the run folder.
        settings: Settings of run.toml by dotted name; empty without a run.toml.
        evaluations: Lines of metrics.jsonl that describe evaluations, at least one.
        last: The last line of metrics.jsonl that describes an update; None if there is none.
        seconds: Seconds of the median update, without evaluations; None if there is none.
        curve: The training loss in at most 1,000 bins: lists of the means of `loss`, `tokens` and `elapsed`. Empty
            without updates.
    """

    name: str
    settings: dict[str, Any]
    evaluations: list[dict]
    last: dict | None = None
    seconds: float | None = None
    curve: dict[str, list[float]] = field(default_factory=dict)

    def tokens_to(self, loss: float) -> int | None:
        """Number of tokens trained on when the validation loss first reached `loss`; None if it never did."""
        return self._first_to("tokens", loss)

    def seconds_to(self, loss: float) -> float | None:
        """Training time, in seconds, when the validation loss first reached `loss`; None if it never did."""
        return self._first_to("elapsed", loss)

    def _first_to(self, name: str, loss: float) -> Any:
        return next((e[name] for e in self.evaluations if e["val_loss"] <= loss), None)

    def facts(self) -> dict[str, float]:
        """Best loss, totals and speed of the run.

        Returns:
            A dictionary with these keys:

            - best_loss (nats per token), best_ppl, best_bits_per_byte, best_step and best_tokens: the evaluation with
              the lowest validation loss.
              A value that its line does not hold is missing.
            - tokens and seconds: totals at the end. `seconds` includes the evaluations.
            - ms_per_iter and tokens_per_second: the speed of the median update, without evaluations. Missing if the
              record has no updates.
        """
        best = min(self.evaluations, key=lambda e: e["val_loss"])
        last = self.last or self.evaluations[-1]
        facts = {
            "best_loss": best["val_loss"],
            "best_ppl": best.get("val_ppl"),
            "best_bits_per_byte": best.get("val_bits_per_byte"),
            "best_step": best["step"],
            "best_tokens": best["tokens"],
            "tokens": last["tokens"],
            "seconds": max(last["elapsed"], self.evaluations[-1]["elapsed"]),
        }
        if self.last and self.seconds:
            facts["ms_per_iter"] = self.seconds * 1000
            facts["tokens_per_second"] = last["tokens"] / last["step"] / self.seconds
        return {name: value for name, value in facts.items() if type(value) in (int, float) and math.isfinite(value)}


class NotEvaluated(UserError):
    """A folder without an evaluation of a run."""


def read_record(path: Path) -> Record:
    """Reads the record of a run.

    Args:
        path: A run folder, or a checkpoint in a run folder.

    Raises:
        NotEvaluated: The folder has no evaluation of a run.
        UserError: There is no such run.
        BadFile: run.toml is not valid TOML.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path}: no such run; name a run folder, such as runs/model-l-shakespeare")
    if not (folder / "metrics.jsonl").is_file():
        raise NotEvaluated(
            f"{path}: no metrics.jsonl of a run is there; name a run folder, such as runs/model-l-shakespeare"
        )
    evaluations, last, seconds, updates = [], None, array("d"), Series()
    for line in all_reports(folder / "metrics.jsonl"):
        if has_numbers(line, EVALUATION):
            evaluations.append(line)
        if "grad_norm" in line and has_numbers(line, UPDATE) and min(line["step"], line["seconds"]) > 0:
            last = line
            seconds.append(line["seconds"])
            if has_numbers(line, CURVE):
                updates.add(int(line["step"]), {name: number(line[name]) for name in CURVE}, 1)
    if not evaluations:
        raise NotEvaluated(f"{folder}: the run was not evaluated yet; train it until its first evaluation")
    tables = current_names(read_toml(folder / "run.toml") if (folder / "run.toml").exists() else {})
    return Record(
        name=str(folder),
        settings=dotted(tables),
        evaluations=evaluations,
        last=last,
        seconds=statistics.median(seconds) if seconds else None,
        curve=curve_of(updates),
    )


def curve_of(updates: Series) -> dict[str, list[float]]:
    """The means of loss, tokens and seconds of the bins that have all of them; see Record.curve."""
    rows = updates.means(*CURVE)
    return {name: list(values) for name, values in zip(CURVE, zip(*rows, strict=True), strict=True)} if rows else {}


def dotted(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of nested dictionaries by dotted name, as {"train.iters": 500}."""
    inner = {table: values for table, values in tables.items() if isinstance(values, dict)}
    return {f"{table}.{name}": value for table, values in inner.items() for name, value in values.items()}


def differences(records: Sequence[Record]) -> dict[str, list]:
    """The settings whose values differ between runs.

    Returns:
        Dotted name -> the value in each run, in the order of `records`. None stands for a run without the setting.
    """
    keys = dict.fromkeys(key for record in records for key in record.settings)
    values = {key: [record.settings.get(key) for record in records] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def thresholds(records: Sequence[Record]) -> list[float]:
    """Chooses losses for the rows "tokens to LOSS" and "seconds to LOSS" of the comparison.

    The losses are multiples of a step: the smallest of ROUND_STEPS that gives at most MAX_THRESHOLDS losses. If none
    does, they are the lowest MAX_THRESHOLDS multiples of the largest of ROUND_STEPS. They lie between the highest first
    evaluation of a run and the lowest evaluation of all runs.

    Example: If evaluations begin at 3.1 and end at 1.9, the thresholds are [3.0, 2.8, 2.6, 2.4, 2.2, 2.0].

    Returns:
        The losses in descending order.
    """
    low = _within_reach(min(e["val_loss"] for r in records for e in r.evaluations))
    high = _within_reach(max(r.evaluations[0]["val_loss"] for r in records))
    for step in ROUND_STEPS:
        first, last = math.floor(high / step), math.ceil(low / step)
        if first - last < MAX_THRESHOLDS:
            break
    return [round(i * step, 2) for i in range(first, last - 1, -1)[-MAX_THRESHOLDS:]]


def _within_reach(loss: float) -> float:
    """Limits a loss to numbers that can be divided by each of ROUND_STEPS. A damaged file may hold larger ones."""
    return min(max(loss, -LARGEST), LARGEST)


def comparison(records: Sequence[Record]) -> dict[str, Any]:
    """The comparison as values that JSON can represent.

    Args:
        records: The runs, at least one.

    Returns:
        A dictionary with the keys `runs`, their names; `rows`, those of table(); and `differing`, the number of the
        first rows that are settings.
    """
    rows = table(records, thresholds(records))
    return {"runs": [record.name for record in records], "rows": rows, "differing": len(differences(records))}


def table(records: Sequence[Record], levels: Sequence[float]) -> list[tuple[str, list[str]]]:
    """The comparison as rows of text.

    Args:
        records: The runs.
        levels: Losses for the rows "tokens to LOSS" and "seconds to LOSS".

    Returns:
        Rows of (label, one cell per run). A "-" stands for a missing value.
    """
    facts = [record.facts() for record in records]

    def row(label: str, form: str, key: str) -> tuple[str, list[str]]:
        return label, [form.format(f[key]) if key in f else "-" for f in facts]

    rows = [(key, ["-" if v is None else _text(v) for v in values]) for key, values in differences(records).items()]
    rows += [
        row("best loss", "{:.4f}", "best_loss"),
        row("perplexity", "{:.2f}", "best_ppl"),
        row("bits/byte", "{:.3f}", "best_bits_per_byte"),
        row("at step", "{:,}", "best_step"),
        row("at tokens", "{:,}", "best_tokens"),
    ]
    for level in levels:
        for unit, form in (("tokens", "{:,}"), ("seconds", "{:,.0f}")):
            reached = [getattr(record, f"{unit}_to")(level) for record in records]
            rows.append((f"{unit} to {level:g}", ["-" if v is None else form.format(v) for v in reached]))
    return rows + [
        row("total tokens", "{:,}", "tokens"),
        row("total seconds", "{:,.0f}", "seconds"),
        row("ms/iter", "{:,.0f}", "ms_per_iter"),
        row("tokens/s", "{:,.0f}", "tokens_per_second"),
    ]


def draw(path: Path, records: Sequence[Record], marks: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()):
    """Plots the losses against tokens in one panel and against seconds in another.

    The validation loss has markers. The training loss is a thin line.

    Args:
        path: The file to write; its suffix is one of FORMATS.
        records: The runs.
        marks: Further series of points, each (label, tokens of the points, losses of the points). They are drawn in
            the panel of tokens only.

    Raises:
        UserError: The suffix is not in FORMATS, the folder does not exist, or matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: pictures are {', '.join(FORMATS)}; choose a file name with one of these suffixes")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; create it, or name another folder")
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib; install it with: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter, NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axes, key, label in zip(panels, ("tokens", "elapsed"), ("tokens", "seconds"), strict=True):
        for i, record in enumerate(records):
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            shown = [(e[key], e["val_loss"]) for e in record.evaluations]
            axes.plot(*_drawable(shown), marker=".", ms=4, lw=1.2, label=record.name, **look)
            trained = zip(record.curve.get(key, []), record.curve.get("loss", []), strict=True)
            axes.plot(*_drawable(trained), lw=0.7, alpha=0.45, **look)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        low, high = axes.get_xlim()
        # The minor ticks are 2, 3, ..., 9 times a power of 10. Their labels overlap on a longer axis.
        axes.xaxis.set_minor_formatter(EngFormatter(sep="") if high < 10 * low else NullFormatter())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for label, tokens, losses in marks:
        panels[0].plot(tokens, losses, "kx", label=label)
    panels[0].set_ylabel("loss, nats per token; with points: validation")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _drawable(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The coordinates of points that can be drawn: not 0, and nothing that only damage explains."""
    kept = [(x, y) for x, y in points if 0 < x <= LARGEST and abs(y) <= LARGEST]
    return [x for x, _ in kept], [y for _, y in kept]


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
