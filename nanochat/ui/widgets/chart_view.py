"""A chart in the terminal, in the theme's colours; where there are none, the points' signs tell series apart."""

from __future__ import annotations

from textual.content import Content

from nanochat.benchmarks.charts import Chart
from nanochat.benchmarks.text_plot import draw
from nanochat.sanitize import sanitize_line
from nanochat.ui.widgets.fitted_lines import FittedLines

_COLOURS = ("$primary", "$accent", "$success", "$error", "$secondary", "$warning")
_ROWS = 16


class ChartView(FittedLines):
    """One chart, as wide as it may be."""

    def __init__(self, chart: Chart, *, ascii_only: bool = False) -> None:
        super().__init__()
        self._chart, self._ascii = chart, ascii_only

    def lines(self, width: int) -> list[Content]:
        """The chart, its title first."""
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
