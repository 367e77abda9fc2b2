"""What of a run is worth a picture: plain points and lines, for the SVG file and for the terminal alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.benchmarks.result import Row, Run


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y), joined by a line or not."""

    name: str
    points: tuple[tuple[float, float], ...]
    line: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture; with `logarithmic`, both axes are."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    logarithmic: bool = False


def charts_of(run: Run) -> list[Chart]:
    """The pictures that a run has rows for: the roofline, throughput against batch, first tokens by turn."""
    charts = [roofline(run), *_throughput(run), *_turns(run)]
    return [chart for chart in charts if any(series.points for series in chart.series)]


def roofline(run: Run) -> Chart:
    """Operations a second against operations for each byte read (Williams, Waterman and Patterson, 2009)."""
    read, matrix = run.ceilings["read"], run.ceilings["matrix"]
    points = [point for row in run.rows if (point := _achieved(row)) is not None]
    if not points:
        return Chart("", "", "", ())
    knee = matrix / read
    low = min(0.5, *(x for _, x, _ in points)) / 2
    high = max(knee, *(x for _, x, _ in points)) * 4
    roof = ((low, low * read / 1e12), (knee, matrix / 1e12), (high, matrix / 1e12))
    series = [Series("roof", roof)]
    for engine in dict.fromkeys(engine for engine, _, _ in points):
        own = tuple((x, y / 1e12) for name, x, y in points if name == engine)
        series.append(Series(engine, own, line=False))
    return Chart("Roofline", "operations a byte", "TFLOP/s", tuple(series), logarithmic=True)


def _achieved(row: Row) -> tuple[str, float, float] | None:
    """(engine, intensity, operations a second) of a row whose ceiling is known."""
    if row.work is None or row.fraction is None or row.fraction <= 0:
        return None
    operations, moved, seconds = row.work["operations"], row.work["bytes"], row.work["seconds"]
    if min(operations, moved, seconds) <= 0 or not math.isfinite(row.fraction):
        return None
    return row.engine, operations / moved, operations * row.fraction / seconds


def _throughput(run: Run) -> list[Chart]:
    rows = [row for row in run.rows if "batch" in row.place and row.samples]
    if not rows:
        return []
    series: list[Series] = []
    for engine in dict.fromkeys(row.engine for row in rows):
        own = [row for row in rows if row.engine == engine]
        series.append(Series(engine, _by("batch", own)))
    whole = Chart("Throughput against batch", "requests at once", "tok/s", tuple(series))
    each = tuple(
        Series(one.name, tuple((batch, rate / batch) for batch, rate in one.points)) for one in series
    )
    return [whole, Chart("Throughput of each request", "requests at once", "tok/s each", each)]


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
    return [Chart("First token of each turn", "turn", "ms", tuple(series))] if rows else []


def _by(axis: str, rows: list[Row]) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((float(row.place[axis]), row.summary.median) for row in rows))
