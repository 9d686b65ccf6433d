"""A small chart of the losses of a run, in the characters of a terminal."""

import math

from rich.text import Text

from mlx_gpt.watch.series import Series

SETTLED = 0.1  # the losses of this first part of the run may be above the chart, so that later ones can be told apart
LABEL = 8  # characters to the left of the chart
STYLES = ("cyan", "bold green")  # of the training loss, and of the validation loss
ASCII = (".", "o")
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of the dot in each row and column of a cell


class LossChart:
    """The training loss as a curve and the validation loss as points, against the step."""

    def __init__(self):
        self._training, self._validation = Series(), Series()

    def add(self, step: int, loss: float, validation: bool = False) -> None:
        """Adds a loss. One that is not finite is left out."""
        if math.isfinite(loss):
            (self._validation if validation else self._training).add(step, {"step": step, "loss": loss}, 0)

    def render(self, width: int, height: int, ascii_only: bool = False) -> list[Text]:
        """Draws the chart.

        Args:
            width: Characters of a line, at least LABEL + 2.
            height: Number of lines.
            ascii_only: Whether to use no other characters than those of ASCII. Braille has 2 x 4 dots in a character.

        Returns:
            The lines; [] if there are fewer than two points.
        """
        both = tuple(series.means("step", "loss") for series in (self._training, self._validation))
        steps = [step for points in both for step, _ in points]
        if len(steps) < 2 or min(steps) == max(steps):
            return []
        across, down = (1, 1) if ascii_only else (2, 4)
        columns, rows = (width - LABEL) * across, height * down
        first, last = min(steps), max(steps)
        settled = first + SETTLED * (last - first)
        losses = [loss for points in both for step, loss in points if step >= settled]
        low, high = min(losses), max(losses)

        def place(point: tuple[float, float]) -> tuple[int, int]:
            x = (point[0] - first) / (last - first) * (columns - 1)
            y = (high - point[1]) / (high - low) * (rows - 1) if high > low else rows / 2
            return round(x), min(max(round(y), 0), rows - 1)

        curve = _joined([place(point) for point in both[0]])
        dots = [curve, {place(point) for point in both[1]}]
        labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
        lines = []
        for row in range(height):
            line = Text(labels.get(row, "").rjust(LABEL - 1) + " ", style="dim", no_wrap=True)
            for column in range(width - LABEL):
                line.append(*_cell(dots, column, row, ascii_only))
            lines.append(line)
        return lines


def _joined(places: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The dots of a curve through places. One place stands for all in its column: their mean."""
    columns: dict[int, list[int]] = {}
    for x, y in places:
        columns.setdefault(x, []).append(y)
    means = [(x, round(sum(ys) / len(ys))) for x, ys in columns.items()]
    dots = set(means)
    for (left, before), (right, after) in zip(means, means[1:], strict=False):
        for i in range(count := max(right - left, abs(after - before))):
            dots.add((round(left + (right - left) * i / count), round(before + (after - before) * i / count)))
    return dots


def _cell(dots: list[set[tuple[int, int]]], column: int, row: int, ascii_only: bool) -> tuple[str, str]:
    """The character and the style of a cell. The last series that has a dot in it gives the style."""
    if ascii_only:
        found = [i for i, each in enumerate(dots) if (column, row) in each]
        return (ASCII[found[-1]], STYLES[found[-1]]) if found else (" ", "")
    bits, style = 0, ""
    for each, of_series in zip(dots, STYLES, strict=True):
        own = sum(
            bit for y, pair in enumerate(BRAILLE) for x, bit in enumerate(pair) if (2 * column + x, 4 * row + y) in each
        )
        bits, style = bits | own, of_series if own else style
    return (chr(0x2800 + bits), style) if bits else (" ", "")
