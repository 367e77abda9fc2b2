"""A run's results on the screen: what they hold for, the rows, the pictures, the small print."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from nanochat.bench import Run
from nanochat.benchmarks.charts import charts_of
from nanochat.sanitize import sanitize_line
from nanochat.ui import bench_text
from nanochat.ui.widgets.chart_view import ChartView
from nanochat.ui.widgets.result_table import ResultTable


class BenchResults(VerticalScroll):
    """One run, growing or whole; or why there is none."""

    def __init__(self) -> None:
        super().__init__(id="bench-run")
        self._drawn: Run | None = None

    def compose(self) -> ComposeResult:
        """From what matters most to what matters least."""
        yield Static(id="bench-facts")
        yield ResultTable()
        yield Vertical(id="bench-charts")
        yield Static(id="bench-small")

    def show(self, run: Run | None, *, running: bool, under_way: bool, error: str) -> bool:
        """Say what is known; whether the run is another than before, so that its pictures must be drawn."""
        facts, small = self.query_one("#bench-facts", Static), self.query_one("#bench-small", Static)
        if run is not None:
            facts.update(bench_text.facts(run, under_way=under_way))
            small.update(bench_text.small_print(run))
        else:
            nothing = "" if running else "Nothing has been measured yet: 1 chooses what."
            said = f"It could not be measured: {error}" if error else nothing
            facts.update(Content.styled(sanitize_line(said), "$error" if error else "$foreground 60%"))
            small.update("")
        if run is self._drawn:
            return False
        self._drawn = run
        self.query_one(ResultTable).show(run)
        return True

    async def draw(self, *, ascii_only: bool) -> None:
        """The pictures of the run that is shown."""
        charts = self.query_one("#bench-charts", Vertical)
        async with self.batch():
            await charts.remove_children()
            found = charts_of(self._drawn) if self._drawn is not None else []
            await charts.mount_all([ChartView(chart, ascii_only=ascii_only) for chart in found])
