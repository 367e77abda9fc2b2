"""Charts in characters: points stand where they belong, axes carry round values, nothing is wider than it may be."""

from __future__ import annotations

import pytest

from nanochat.benchmarks.axis import Axis, short
from nanochat.benchmarks.charts import Chart, Series
from nanochat.benchmarks.text_plot import draw, plain


def test_an_axis_knows_where_a_value_lies() -> None:
    assert Axis(0, 200).share(50) == 0.25
    assert Axis(1, 100, logarithmic=True).share(10) == pytest.approx(0.5)
    assert Axis.over([5.0, 20.0]).low == 0.0  # a rate begins at zero, so that twice as high is twice as much


@pytest.mark.parametrize(
    ("axis", "most", "ticks"),
    [
        (Axis(0, 100), 6, [0, 20, 40, 60, 80, 100]),
        (Axis(0, 7), 4, [0, 2, 4, 6]),
        (Axis(0.5, 3000, logarithmic=True), 6, [1, 10, 100, 1000]),
        (Axis(0.5, 30, logarithmic=True), 6, [0.5, 1, 2, 5, 10, 20]),
    ],
)
def test_ticks_are_round_and_not_too_many(axis: Axis, most: int, ticks: list[float]) -> None:
    assert axis.ticks(most) == pytest.approx(ticks)


def test_ticks_are_written_short() -> None:
    assert [short(value) for value in (0.05, 2.0, 1500.0, 12000.0, 3e6)] == ["0.05", "2", "1500", "12k", "3M"]


def test_a_point_stands_in_its_row_and_column() -> None:
    chart = Chart("t", "x", "y", (Series("a", ((0.0, 0.0), (10.0, 100.0)), line=False),))
    rows = [line for line in plain(chart, 40, 15) if "│" in line or "┤" in line]
    assert rows[-1].index("●") < 8 and rows[0].rstrip().endswith("●") and sum("●" in row for row in rows) == 2


def test_a_line_joins_its_points_without_a_gap() -> None:
    chart = Chart("t", "x", "y", (Series("a", ((0.0, 0.0), (10.0, 100.0)), marked=False),))
    rows = [line for line in plain(chart, 60, 15) if "│" in line or "┤" in line]
    assert all(any(0x2800 < ord(char) < 0x2900 for char in row) for row in rows)


@pytest.mark.parametrize("width", [30, 56, 80, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_chart_keeps_to_its_width_and_its_characters(width: int, ascii_only: bool) -> None:
    points = tuple((2.0**n, 3.0**n) for n in range(7))
    series = (
        Series("one engine", points, labels=tuple(f"test {n}" for n in range(7))),
        Series("another", points[:3]),
    )
    chart = Chart(
        "A title", "an axis", "tok/s", series, log_x=True, log_y=True, x_ticks=tuple(x for x, _ in points)
    )
    lines = plain(chart, width, 16, ascii_only=ascii_only)
    assert all(len(line) <= width for line in lines)
    assert not ascii_only or all(line.isascii() for line in lines)


def test_every_piece_belongs_to_its_series() -> None:
    chart = Chart(
        "t", "x", "y", (Series("first", ((1.0, 1.0),)), Series("second", ((2.0, 2.0),), line=False))
    )
    pieces = [piece for row in draw(chart, 50, 12) for piece in row]
    assert {place for text, place in pieces if "●" in text} == {0}
    assert {place for text, place in pieces if "■" in text} == {1}


def test_labels_that_have_no_room_are_left_out() -> None:
    points = tuple((1.0, 1.0 + n / 1000) for n in range(9))
    crowd = Series("a", points, line=False, labels=tuple(f"name number {n}" for n in range(9)))
    text = "\n".join(plain(Chart("t", "x", "y", (crowd,)), 60, 14))
    assert 0 < text.count("name number") < 9
