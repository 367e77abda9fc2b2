"""What of a run is worth a picture: plain points and lines, for the SVG file and for the terminal alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nanochat.benchmarks.result import Row, Run


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y), joined by a `line` or not, `marked` each or not; `labels` has a name for each point, or nothing."""

    name: str
    points: tuple[tuple[float, float], ...]
    line: bool = True
    marked: bool = True
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What each point is called: its label, or the series' name."""
        return self.labels or (self.name,) * len(self.points)


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture. `log_x` and `log_y` say which axes are logarithmic; `x_ticks` are the values to write, if not any."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    x_ticks: tuple[float, ...] = ()


def charts_of(run: Run) -> list[Chart]:
    """The pictures that a run has rows for: throughput against batch, first tokens by turn, the roofline."""
    charts = [*_throughput(run), *_turns(run), roofline(run)]
    return [chart for chart in charts if any(series.points for series in chart.series)]


def roofline(run: Run) -> Chart:
    """Operations a second against operations for each byte read (Williams, Waterman and Patterson, 2009)."""
    read, matrix = run.ceilings["read"], run.ceilings["matrix"]
    points = [point for row in run.rows if (point := _achieved(row)) is not None]
    if not points:
        return Chart("", "", "", ())
    knee = matrix / read
    low = min(0.5, *(x for _, _, x, _ in points)) / 2
    high = max(knee, *(x for _, _, x, _ in points)) * 4
    roof = ((low, low * read / 1e12), (knee, matrix / 1e12), (high, matrix / 1e12))
    series = [Series("what this device can do", roof, marked=False)]
    for engine in dict.fromkeys(engine for engine, *_ in points):
        own = [point for point in points if point[0] == engine]
        places = tuple((x, y / 1e12) for _, _, x, y in own)
        series.append(Series(engine, places, line=False, labels=tuple(test for _, test, _, _ in own)))
    return Chart("Roofline", "operations a byte", "TFLOP/s", tuple(series), log_x=True, log_y=True)


def _achieved(row: Row) -> tuple[str, str, float, float] | None:
    """(engine, test, intensity, operations a second) of a row whose ceiling is known."""
    if row.work is None or row.fraction is None or row.fraction <= 0:
        return None
    operations, moved, seconds = row.work["operations"], row.work["bytes"], row.work["seconds"]
    if min(operations, moved, seconds) <= 0 or not math.isfinite(row.fraction):
        return None
    return row.engine, row.test, operations / moved, operations * row.fraction / seconds


def _throughput(run: Run) -> list[Chart]:
    rows = [row for row in run.rows if "batch" in row.place and row.samples]
    if not rows:
        return []
    series: list[Series] = []
    for engine in dict.fromkeys(row.engine for row in rows):
        own = [row for row in rows if row.engine == engine]
        series.append(Series(engine, _by("batch", own)))
    batches = tuple(sorted({float(row.place["batch"]) for row in rows}))
    whole = Chart(
        "Throughput against batch", "requests at once", "tok/s", tuple(series), log_x=True, x_ticks=batches
    )
    each = tuple(
        Series(one.name, tuple((batch, rate / batch) for batch, rate in one.points)) for one in series
    )
    return [whole, replace(whole, title="Throughput of each request", y="tok/s each", series=each)]


def _turns(run: Run) -> list[Chart]:
    rows = [row for row in run.rows if "turn" in row.place and row.samples]
    series = [
        Series(
            f"{engine}, {'cached' if cache else 'no cache'}",
            _by("turn", [row for row in rows if row.engine == engine and bool(row.place["cache"]) == cache]),
        )
        for engine in dict.fromkeys(row.engine for row in rows)
        for cache in (True, False)
    ]
    turns = tuple(sorted({float(row.place["turn"]) for row in rows}))
    return [Chart("First token of each turn", "turn", "ms", tuple(series), x_ticks=turns)] if rows else []


def _by(axis: str, rows: list[Row]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((float(row.place[axis]), row.summary.median) for row in rows))
