"""Series of numbers over the steps of a run, in bounded memory.

The steps are divided into bins of equal width. A bin has the mean, the minimum and the maximum of each field, so a
single outlier of a million steps stays visible. When a series has more than MAX_BINS bins, the width doubles and pairs
of neighbouring bins are merged. The bins depend on the reports and their order, not on when they were added.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

MAX_BINS = 1000  # about the number of pixels that a chart is wide
MAX_FIELDS = 96  # fields of one series; reports of mlxgpt have fewer than 40, plus some for each layer
DIGITS = 7  # significant decimal digits of the values sent to the page


class Series:
    """Numbers over steps, in at most MAX_BINS bins.

    Attributes:
        width: Steps in a bin, a power of 2.
        rebuilt: The stamp of the last change of `width`; 0 before.
        num_dropped: Number of fields that were dropped because there were more than MAX_FIELDS.
    """

    def __init__(self):
        self.width, self.rebuilt, self.num_dropped = 1, 0, 0
        self._rows: dict[int, int] = {}  # bin -> row of the columns
        self._stamps = array("q")  # for each row, the stamp of its last change
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, values: Mapping[str, float], stamp: int) -> None:
        """Adds the values of one report.

        Args:
            step: The step of the report, at least 0.
            values: Finite numbers by field.
            stamp: A number that never decreases from call to call.
        """
        row = self._rows.get(step // self.width)
        if row is None:
            row = self._new_row(step, stamp)
        self._stamps[row] = stamp
        for name, value in values.items():
            column = self._columns.get(name) or self._new_column(name)
            if column:
                column.add(row, value)

    def columns(self, after: int = 0) -> dict[str, Any]:
        """The bins that have changed, as columns.

        Args:
            after: Only bins with a later stamp. 0 is all of them.

        Returns:
            A dictionary with the keys `width`; `bins`, the sorted numbers of the bins; and `fields`. `fields` maps each
            field to three lists: the mean, the minimum and the maximum of each bin, or None for a bin without values.
        """
        rows = sorted((bin, row) for bin, row in self._rows.items() if self._stamps[row] > after)
        found = {name: column.lists([row for _, row in rows]) for name, column in self._columns.items()}
        return {
            "width": self.width,
            "bins": [bin for bin, _ in rows],
            "fields": {name: lists for name, lists in found.items() if any(v is not None for v in lists[0])},
        }

    def means(self, *names: str) -> list[tuple[float, ...]]:
        """The means of these fields in each bin that has all of them, in the order of the steps."""
        columns = [self._columns.get(name) for name in names]
        if None in columns:
            return []
        rows = (row for _, row in sorted(self._rows.items()) if all(column.count[row] for column in columns))
        return [tuple(column.total[row] / column.count[row] for column in columns) for row in rows]

    def _new_row(self, step: int, stamp: int) -> int:
        while len(self._rows) >= MAX_BINS and step // self.width not in self._rows:
            self._double(stamp)
        bin = step // self.width
        if bin not in self._rows:
            self._rows[bin] = len(self._stamps)
            self._stamps.append(stamp)
            for column in self._columns.values():
                column.grow(1)
        return self._rows[bin]

    def _new_column(self, name: str) -> "_Column | None":
        if len(self._columns) >= MAX_FIELDS:
            self.num_dropped += 1
            return None
        column = self._columns[name] = _Column()
        column.grow(len(self._stamps))
        return column

    def _double(self, stamp: int) -> None:
        self.width, self.rebuilt = 2 * self.width, stamp
        old, self._rows = self._rows, {}
        parents = array("q", bytes(8 * len(self._stamps)))  # for each old row, its new row
        for bin, row in sorted(old.items()):
            parents[row] = self._rows.setdefault(bin // 2, len(self._rows))
        self._stamps = array("q", [stamp]) * len(self._rows)
        self._columns = {name: column.merged(parents, len(self._rows)) for name, column in self._columns.items()}


class _Column:
    """Count, sum, minimum and maximum of one field, for each row."""

    __slots__ = ("count", "total", "low", "high")

    def __init__(self):
        self.count, self.total, self.low, self.high = (array("d") for _ in range(4))

    def grow(self, num_rows: int) -> None:
        for values in (self.count, self.total, self.low, self.high):
            values.frombytes(bytes(8 * num_rows))

    def add(self, row: int, value: float) -> None:
        if self.count[row]:
            self.count[row] += 1
            self.total[row] += value
            if value < self.low[row]:
                self.low[row] = value
            if value > self.high[row]:
                self.high[row] = value
        else:
            self.count[row], self.total[row], self.low[row], self.high[row] = 1, value, value, value

    def merged(self, parents: Iterable[int], num_rows: int) -> "_Column":
        new = _Column()
        new.grow(num_rows)
        for row, parent in enumerate(parents):
            if not self.count[row]:
                continue
            low = min(self.low[row], new.low[parent]) if new.count[parent] else self.low[row]
            high = max(self.high[row], new.high[parent]) if new.count[parent] else self.high[row]
            new.low[parent], new.high[parent] = low, high
            new.count[parent] += self.count[row]
            new.total[parent] += self.total[row]
        return new

    def lists(self, rows: list[int]) -> list[list[float | None]]:
        """The mean, the minimum and the maximum of each of these rows."""
        means = [_short(self.total[row] / self.count[row]) if self.count[row] else None for row in rows]
        low = [_short(self.low[row]) if self.count[row] else None for row in rows]
        high = [_short(self.high[row]) if self.count[row] else None for row in rows]
        return [means, low, high]


def _short(value: float) -> float:
    """Rounds a value to DIGITS significant digits; whole numbers, such as steps and tokens, stay exact."""
    return value if value.is_integer() else float(f"{value:.{DIGITS}g}")
