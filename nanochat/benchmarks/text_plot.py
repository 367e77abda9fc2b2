"""A chart in characters: lines of braille dots, a sign for each point, axes with round values, and a legend.

Plain rows of text with the number of the series that each piece belongs to, so that the screen and the command line
draw the same picture in their own colours; nothing but Python is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from nanochat.benchmarks.axis import Axis, short
from nanochat.benchmarks.charts import Chart, Series

Piece = tuple[str, int | None]
"""Text, and the place of the series it belongs to; None is the frame."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, by row and column
_MARKS, _ASCII_MARKS = "●■▲◆✚○□△◇", "ox+#@%&$="
_LEAST_WIDTH, _LEAST_HEIGHT = 30, 8


@dataclass(frozen=True, slots=True)
class _Signs:
    marks: str
    corner: str
    bottom: str
    side: str
    tick_x: str
    tick_y: str


_UNICODE = _Signs(_MARKS, "└", "─", "│", "┴", "┤")
_ASCII = _Signs(_ASCII_MARKS, "+", "-", "|", "+", "+")


def mark(place: int, *, ascii_only: bool = False) -> str:
    """The sign of a series' points."""
    marks = _ASCII_MARKS if ascii_only else _MARKS
    return marks[place % len(marks)]


def draw(chart: Chart, width: int, height: int, *, ascii_only: bool = False) -> list[list[Piece]]:
    """A chart as `height` rows or a few more for a long legend, each at most `width` cells wide."""
    return _Drawing(chart, max(width, _LEAST_WIDTH), max(height, _LEAST_HEIGHT), ascii_only).rows()


def plain(chart: Chart, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    """The same as text without colours."""
    drawn = draw(chart, width, height, ascii_only=ascii_only)
    return ["".join(text for text, _ in row).rstrip() for row in drawn]


class _Drawing:
    """One chart at one size."""

    def __init__(self, chart: Chart, width: int, height: int, ascii_only: bool) -> None:
        self._chart, self._width, self._ascii = chart, width, ascii_only
        self._signs = _ASCII if ascii_only else _UNICODE
        self._legend = self._legend_rows()
        self._rows = max(height - 4 - len(self._legend), 4)  # title, axis, its values and its name
        points = [point for series in chart.series for point in series.points]
        self._x = Axis.over((x for x, _ in points), logarithmic=chart.log_x)
        self._y = Axis.over((y for _, y in points), logarithmic=chart.log_y)
        self._y_ticks = {
            self._row_of(value): short(value) for value in self._y.ticks(max(2 * self._rows // 3, 2))
        }
        self._left = max((len(text) for text in self._y_ticks.values()), default=1) + 1
        self._columns = width - self._left - 1
        self._dots: dict[tuple[int, int], tuple[int, int]] = {}  # (row, column) -> (braille bits, series)
        self._cells: dict[tuple[int, int], tuple[str, int]] = {}  # signs and letters over the dots

    def rows(self) -> list[list[Piece]]:
        """Title, plot, axis and legend."""
        for place, series in enumerate(self._chart.series):
            self._add_line(place, series)
        for place, series in enumerate(self._chart.series):
            self._add_marks(place, series)
        for place, series in enumerate(self._chart.series):
            self._add_labels(place, series)
        title: list[Piece] = [(f"{self._chart.title} · {self._chart.y}"[: self._width], None)]
        if self._ascii:
            title = [(title[0][0].replace("·", "-"), None)]
        return [title, *(self._plot_row(row) for row in range(self._rows)), *self._bottom(), *self._legend]

    # Places ------------------------------------------------------------------------------------

    def _row_of(self, y: float) -> int:
        return min(int((1 - self._y.share(y)) * self._rows), self._rows - 1)

    def _column_of(self, x: float) -> int:
        return min(int(self._x.share(x) * self._columns), self._columns - 1)

    # What is put on the plot -------------------------------------------------------------------

    def _add_line(self, place: int, series: Series) -> None:
        if not series.line:
            return
        wide, high = 2 * self._columns - 1, 4 * self._rows - 1
        ends = [
            (round(self._x.share(x) * wide), round((1 - self._y.share(y)) * high)) for x, y in series.points
        ]
        for (x0, y0), (x1, y1) in pairwise(ends):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                self._dot(round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps), place)

    def _dot(self, x: int, y: int, place: int) -> None:
        cell = (y // 4, x // 2)
        before = self._dots.get(cell, (0, place))[0]
        self._dots[cell] = (before | _DOTS[y % 4][x % 2], place)

    def _add_marks(self, place: int, series: Series) -> None:
        if series.marked:
            for x, y in series.points:
                sign = mark(place, ascii_only=self._ascii)
                self._cells[self._row_of(y), self._column_of(x)] = (sign, place)

    def _add_labels(self, place: int, series: Series) -> None:
        """Each point's name beside it, right or left, where there is room; else nowhere."""
        for (x, y), label in zip(series.points, series.labels, strict=False):
            row, column = self._row_of(y), self._column_of(x)
            for start in (column + 2, column - len(label) - 1):
                if self._free(row, start, len(label)):
                    for offset, letter in enumerate(label):
                        self._cells[row, start + offset] = (letter, place)
                    break

    def _free(self, row: int, start: int, length: int) -> bool:
        if not (0 <= row < self._rows and start >= 0 and start + length <= self._columns):
            return False
        span = range(max(start - 1, 0), start + length + 1)
        return not any((row, column) in self._cells for column in span)

    # Rows --------------------------------------------------------------------------------------

    def _plot_row(self, row: int) -> list[Piece]:
        label = self._y_ticks.get(row)
        edge = self._signs.side if label is None else self._signs.tick_y
        pieces: list[Piece] = [(f"{label or '':>{self._left - 1}} {edge}", None)]
        for column in range(self._columns):
            text, place = self._cell(row, column)
            if pieces[-1][1] == place and len(pieces) > 1:
                pieces[-1] = (pieces[-1][0] + text, place)
            else:
                pieces.append((text, place))
        return pieces

    def _cell(self, row: int, column: int) -> Piece:
        if (row, column) in self._cells:
            return self._cells[row, column]
        if (row, column) in self._dots:
            bits, place = self._dots[row, column]
            return ("." if self._ascii else chr(0x2800 + bits)), place
        return " ", None

    def _bottom(self) -> list[list[Piece]]:
        """The axis, its values, and its name at the right."""
        line = [self._signs.bottom] * self._columns
        values = [" "] * self._columns
        taken = -1
        for value in self._chart.x_ticks or self._x.ticks(max(self._columns // 8, 2)):
            column, text = self._column_of(value), short(value)
            line[column] = self._signs.tick_x
            start = min(max(column - len(text) // 2, 0), self._columns - len(text))
            if start > taken:
                values[start : start + len(text)] = text
                taken = start + len(text)
        indent = " " * self._left
        return [
            [(indent + self._signs.corner + "".join(line), None)],
            [(indent + " " + "".join(values), None)],
            [(f"{self._chart.x:>{self._width}}"[: self._width], None)],
        ]

    def _legend_rows(self) -> list[list[Piece]]:
        """The series' signs and names, as many on a row as fit."""
        rows: list[list[Piece]] = []
        used = self._width
        for place, series in enumerate(self._chart.series):
            line = "." if self._ascii else "⠒"
            sign = mark(place, ascii_only=self._ascii) if series.marked else line
            text = f"{line if series.line else ''}{sign}{line if series.line else ''} {series.name}"
            if used + len(text) + 3 > self._width:
                rows.append([("  ", None)])
                used = 2
            rows[-1] += [(text[: self._width - 4], place), ("   ", None)]
            used += len(text) + 3
        return rows
