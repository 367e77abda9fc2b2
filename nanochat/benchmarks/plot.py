"""A run's charts as one SVG file, one below the other. Plain elements: any browser or editor shows them."""

from __future__ import annotations

from html import escape

from nanochat.benchmarks.axis import Axis, short
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
        self._x = Axis.over(xs, logarithmic=chart.log_x)
        self._y = Axis.over(ys, logarithmic=chart.log_y)

    def elements(self) -> list[str]:
        """Axes, series and legend."""
        right = _WIDTH - _RIGHT
        found = [
            _text(_LEFT, self._title_at, self._chart.title, weight="bold"),
            f'<path d="M{_LEFT} {self._top}V{self._floor}H{right}" fill="none" stroke="#444"/>',
            _text((_LEFT + right) / 2, self._floor + 36, self._chart.x, anchor="middle"),
            _text(_LEFT - 8, self._top - 4, self._chart.y, anchor="end", size=10),
        ]
        for value in self._chart.x_ticks or self._x.ticks():
            at = self._across(value)
            found.append(f'<path d="M{at:.1f} {self._floor}v4" stroke="#444"/>')
            found.append(_text(at, self._floor + 18, short(value), anchor="middle", size=10))
        for value in self._y.ticks():
            at = self._down(value)
            found.append(f'<path d="M{_LEFT} {at:.1f}H{right}" stroke="#ddd"/>')
            found.append(_text(_LEFT - 8, at + 4, short(value), anchor="end", size=10))
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
        if series.marked:
            for (x, y), values, name in zip(points, series.points, series.names, strict=True):
                label = escape(f"{name}: {number(values[0])}, {number(values[1])}")
                circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
                found.append(f"{circle}<title>{label}</title></circle>")
                if series.labels:
                    found.append(_text(x + 6, y + 3, name, size=9))
        legend = self._top + 8 + 18 * place
        found.append(
            f'<rect x="{_WIDTH - _RIGHT + 16}" y="{legend - 9}" width="10" height="10" fill="{colour}"/>'
        )
        found.append(_text(_WIDTH - _RIGHT + 32, legend, series.name, size=11))
        return found

    def _across(self, value: float) -> float:
        return _LEFT + self._x.share(value) * (_WIDTH - _RIGHT - _LEFT)

    def _down(self, value: float) -> float:
        return self._floor - self._y.share(value) * (self._floor - self._top)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
