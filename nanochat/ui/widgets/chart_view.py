"""A chart in the terminal, in the theme's colours; where there are none, the points' signs tell series apart."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from nanochat.benchmarks.charts import Chart
from nanochat.benchmarks.text_plot import draw
from nanochat.sanitize import sanitize_line

_COLOURS = ("$primary", "$accent", "$success", "$error", "$secondary", "$warning")
_ROWS = 16


class ChartView(Widget):
    """One chart, as wide as it may be."""

    DEFAULT_CSS = "ChartView { height: auto; }"

    def __init__(self, chart: Chart, *, ascii_only: bool = False) -> None:
        super().__init__()
        self._chart, self._ascii = chart, ascii_only

    def render(self) -> Content:
        """The chart at the present width."""
        return Content("\n").join(self._lines(self.size.width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as it takes."""
        return len(self._lines(width))

    def _lines(self, width: int) -> list[Content]:
        rows = draw(self._chart, width, _ROWS, ascii_only=self._ascii)
        lines = [
            Content.assemble(
                *(
                    (
                        sanitize_line(text),
                        "$foreground 70%" if place is None else _COLOURS[place % len(_COLOURS)],
                    )
                    for text, place in row
                )
            )
            for row in rows
        ]
        lines[0] = Content.styled(lines[0].plain, "bold")
        return lines
