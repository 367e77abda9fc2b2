"""A run's charts as one SVG file, one below the other. Plain elements: any browser or editor shows them."""

from __future__ import annotations

import math
from html import escape

from nanochat.benchmarks.charts import Chart, charts_of
from nanochat.benchmarks.report import header, number
from nanochat.benchmarks.result import Run

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 180, 40, 50
_HEAD = 24
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#ff7f0e",
    "#9467bd",
    "#8c564b",
    "#17becf",
)  # told apart in print too
_TICKS = 5


def svg(run: Run) -> str:
    """The picture of a run; one without any figure says so."""
    charts = charts_of(run)
    height = _HEAD * 3 + _HEIGHT * max(len(charts), 1)
    title, where = header(run)[:2]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(16, 22, title, weight="bold"),
        _text(16, 42, where, size=10),
    ]
    if not charts:
        parts.append(_text(16, 80, "no figure was measured"))
    for place, chart in enumerate(charts):
        parts += _Drawing(chart, _HEAD * 3 + place * _HEIGHT).elements()
    return "\n".join([*parts, "</svg>", ""])


class _Drawing:
    """One chart at a height."""

    def __init__(self, chart: Chart, top: int) -> None:
        self._chart = chart
        self._top, self._floor = top + _TOP, top + _HEIGHT - _BOTTOM
        self._title_at = top + _TOP - 14
        xs = [x for series in chart.series for x, _ in series.points]
        ys = [y for series in chart.series for _, y in series.points]
        zero = [] if chart.logarithmic else [0.0]
        self._x = self._span([*xs, *zero])
        self._y = self._span([*ys, *zero])

    def elements(self) -> list[str]:
        """Axes, series and legend."""
        right = _WIDTH - _RIGHT
        found = [
            _text(_LEFT, self._title_at, self._chart.title, weight="bold"),
            f'<path d="M{_LEFT} {self._top}V{self._floor}H{right}" fill="none" stroke="#444"/>',
            _text((_LEFT + right) / 2, self._floor + 36, self._chart.x, anchor="middle"),
            _text(_LEFT - 8, self._top - 4, self._chart.y, anchor="end", size=10),
        ]
        for value in self._ticks(self._x):
            at = self._across(value)
            found.append(f'<path d="M{at:.1f} {self._floor}v4" stroke="#444"/>')
            found.append(_text(at, self._floor + 18, _short(value), anchor="middle", size=10))
        for value in self._ticks(self._y):
            at = self._down(value)
            found.append(f'<path d="M{_LEFT} {at:.1f}H{right}" stroke="#ddd"/>')
            found.append(_text(_LEFT - 8, at + 4, _short(value), anchor="end", size=10))
        for place in range(len(self._chart.series)):
            found += self._series(place)
        return found

    def _series(self, place: int) -> list[str]:
        series, colour = self._chart.series[place], _COLOURS[place % len(_COLOURS)]
        points = [(self._across(x), self._down(y)) for x, y in series.points]
        found: list[str] = []
        if series.line and points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            found.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for (x, y), (value_x, value_y) in zip(points, series.points, strict=True):
            label = escape(f"{series.name}: {number(value_x)}, {number(value_y)}")
            found.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{label}</title></circle>'
            )
        legend = self._top + 8 + 18 * place
        found.append(
            f'<rect x="{_WIDTH - _RIGHT + 16}" y="{legend - 9}" width="10" height="10" fill="{colour}"/>'
        )
        found.append(_text(_WIDTH - _RIGHT + 32, legend, series.name, size=11))
        return found

    def _span(self, values: list[float]) -> tuple[float, float]:
        low, high = min(values), max(values)
        if self._chart.logarithmic:
            return low / 1.5, high * 1.5
        return low, high * 1.05 if high > low else low + 1.0

    def _ticks(self, span: tuple[float, float]) -> list[float]:
        low, high = span
        if self._chart.logarithmic:
            powers = [
                10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ]
            return [value for value in powers if low <= value <= high]
        rough = (high - low) / _TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(low / step)
        return [step * place for place in range(first, math.floor(high / step) + 1)]

    def _share(self, value: float, span: tuple[float, float]) -> float:
        low, high = span
        if self._chart.logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def _across(self, value: float) -> float:
        return _LEFT + self._share(value, self._x) * (_WIDTH - _RIGHT - _LEFT)

    def _down(self, value: float) -> float:
        return self._floor - self._share(value, self._y) * (self._floor - self._top)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"
