"""The benchmark's screen: choose and start, watch, read the results, look at kept runs, compare two of them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, ContentSwitcher, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.bench import START, Run
from nanochat.benchmarks.charts import charts_of
from nanochat.benchmarks.comparison import compare
from nanochat.benchmarks.known_shapes import SHAPES
from nanochat.benchmarks.presets import ABOUT
from nanochat.benchmarks.report import as_csv, comparison_lines, markdown
from nanochat.benchmarks.storage import Results
from nanochat.errors import UsageError
from nanochat.hub import LocalModel
from nanochat.modelhub import starter
from nanochat.sanitize import sanitize_line
from nanochat.ui import bench_text, figures
from nanochat.ui.benchmark import Benchmark, kept_runs, plan_for
from nanochat.ui.exporting import write_new
from nanochat.ui.widgets.chart_view import ChartView
from nanochat.ui.widgets.choices import Choices
from nanochat.ui.widgets.result_table import ResultTable
from nanochat.ui.widgets.view_strip import ViewStrip

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

View = Literal["measure", "run", "kept", "compare"]
_TITLES: dict[View, str] = {
    "measure": "1 Measure",
    "run": "2 Results",
    "kept": "3 Kept runs",
    "compare": "Comparison",
}
_ORDER: tuple[View, ...] = ("measure", "run", "kept")
_HINTS: dict[View, tuple[str, ...]] = {  # what matters most comes first: a narrow screen shows fewer
    "measure": ("Enter start", "Esc back", "Tab models", "+ - repeats", "t against Transformers"),
    "run": ("Esc back", "y copy", "e export", "↑↓ scroll", "←→ views"),
    "kept": ("Enter show", "Space mark", "c compare", "Esc back", "y copy", "e export"),
    "compare": ("Esc back", "y copy", "e export", "↑↓ scroll"),
}
_RUNNING = ("Esc stops and keeps what was finished", "↑↓ scroll")
_MOST_REPEATS = 100
_DRAWN = tuple(name for name in SHAPES if name != "tiny")
_FORMATS = (
    ("md", "Markdown", "llama-bench's table, to paste into an issue"),
    ("json", "JSON", "everything, with every sample"),
    ("csv", "CSV", "a line for each sample"),
    ("svg", "SVG", "the pictures"),
)


class BenchScreen(Screen[None]):
    """Shows the application's `Benchmark` and the runs on disk. It keeps no run going by itself."""

    AUTO_FOCUS = "#bench-presets"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (150, "-wide")]  # noqa: RUF012 - as Screen declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f4", "leave", "Stop, or back", id="bench.leave"),
        Binding("1", "show('measure')", "Measure", id="bench.measure"),
        Binding("2", "show('run')", "Results", id="bench.results"),
        Binding("3", "show('kept')", "Kept runs", id="bench.kept"),
        Binding("left,h", "turn(-1)", "View to the left", id="bench.left"),
        Binding("right,l", "turn(1)", "View to the right", id="bench.right"),
        Binding("plus,equals_sign", "repeats(1)", "One repeat more", id="bench.more"),
        Binding("minus", "repeats(-1)", "One repeat less", id="bench.less"),
        Binding("t", "against", "Against Transformers", id="bench.against"),
        Binding("y", "copy", "Copy", id="bench.copy"),
        Binding("e", "export", "Export", id="bench.export"),
        Binding("space", "mark", "Mark for a comparison", id="bench.mark"),
        Binding("c", "compare", "Compare", id="bench.compare"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._view: View = "measure"
        self._repeats, self._against = 5, False
        self._models: list[LocalModel | str] = []
        self._kept: list[Run | str] = []
        self._marked: list[str] = []  # ids of runs, the older mark first
        self._opened: Run | None = None  # a kept run that is shown instead of the latest
        self._drawn: Run | None = None
        self._compared: tuple[Run, Run] | None = None

    def compose(self) -> ComposeResult:
        """Head, progress, one of four views, and what the keys do."""
        yield ViewStrip("Benchmark", id="bench-head")
        yield Static(id="bench-live")
        with ContentSwitcher(initial="bench-measure", id="bench-views"):
            with Vertical(id="bench-measure"):
                with Horizontal(id="bench-choices"):
                    with Vertical(id="bench-left"):
                        yield Static("What", classes="bench-title")
                        yield Choices(*(Option(name, id=name) for name in ABOUT), id="bench-presets")
                    with Vertical(id="bench-right"):
                        yield Static("Model", classes="bench-title")
                        yield Choices(id="bench-models")
                yield Static(id="bench-about")
                yield Button("Start", id="bench-start", compact=True)
            with VerticalScroll(id="bench-run"):
                yield Static(id="bench-facts")
                yield ResultTable()
                yield Vertical(id="bench-charts")
                yield Static(id="bench-small")
            with Vertical(id="bench-kept-box"):
                yield Choices(id="bench-kept")
            with VerticalScroll(id="bench-compare"):
                yield Static(id="bench-words")
        yield Static(id="bench-hint")

    def on_mount(self) -> None:
        """Show what there is; the rest is read meanwhile."""
        self.benchmark.on_change = self._changed
        self.nanochat.attempt(self._fill())
        self.action_show("run" if self.benchmark.run is not None or self.benchmark.running else "measure")

    def on_unmount(self) -> None:
        """Nobody looks any more."""
        self.benchmark.on_change = lambda: None

    # Parts -------------------------------------------------------------------------------------

    @property
    def nanochat(self) -> NanochatApp:
        """The application, by its own type."""
        return cast("NanochatApp", self.app)

    @property
    def benchmark(self) -> Benchmark:
        """The application's benchmark."""
        return self.nanochat.benchmark

    @property
    def shown(self) -> Run | None:
        """The run in the results."""
        return self._opened or self.benchmark.run

    @property
    def _results(self) -> Results:
        return Results(self.nanochat.paths.data / "bench")

    # Choosing ----------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """The models on this machine and the kept runs."""
        shelf = self.nanochat.shelf
        self._models = [*await asyncio.to_thread(shelf.installed), *_DRAWN]
        models = self.query_one("#bench-models", OptionList)
        models.clear_options()
        models.add_options(Option(_model_line(model)) for model in self._models)
        used = self.nanochat.host.model
        paths = [model.path if isinstance(model, LocalModel) else None for model in self._models]
        models.highlighted = paths.index(used.path) if used is not None and used.path in paths else 0
        await self._read_kept()
        self._refresh()

    async def _read_kept(self) -> None:
        self._kept = await kept_runs(self._results)
        self._show_kept()

    def _show_kept(self) -> None:
        listed = self.query_one("#bench-kept", OptionList)
        place = listed.highlighted
        listed.clear_options()
        width = self.app.size.width - 4
        listed.add_options(
            Option(bench_text.kept_line(run, isinstance(run, Run) and run.id in self._marked, width))
            for run in self._kept
        )
        listed.highlighted = min(place or 0, len(self._kept) - 1) if self._kept else None

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self._refresh()

    @on(OptionList.OptionSelected, "#bench-presets,#bench-models")
    def _start_chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.nanochat.attempt(self._start())

    @on(Button.Pressed, "#bench-start")
    def _start_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.nanochat.attempt(self._start())

    @on(ViewStrip.Chosen)
    def _view_chosen(self, event: ViewStrip.Chosen) -> None:
        event.stop()
        if event.place < len(_ORDER):
            self.action_show(_ORDER[event.place])

    @on(OptionList.OptionSelected, "#bench-kept")
    def _kept_chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        run = self._kept[event.option_index]
        if isinstance(run, Run):
            self._opened = run
            self.action_show("run")

    @property
    def _preset(self) -> str:
        place = self.query_one("#bench-presets", OptionList).highlighted
        return [*ABOUT][place or 0]

    @property
    def _model(self) -> LocalModel | str:
        place = self.query_one("#bench-models", OptionList).highlighted
        if place is None or not self._models:
            raise UsageError("the models are still being looked up: a moment")
        return self._models[place]

    async def _start(self) -> None:
        settings = self.nanochat.settings
        against = ("transformers",) if self._against and self._preset not in (START, "screen") else ()
        plan = await asyncio.to_thread(
            plan_for, self._preset, self._model, cache=self.nanochat.paths.cache, device=settings.device,
            dtype=settings.dtype, repeats=self._repeats, against=against,
        )  # fmt: skip
        await self.benchmark.start(plan)
        self._opened = None
        self.action_show("run")

    # Keys --------------------------------------------------------------------------------------

    def action_leave(self) -> None:
        """Stop the run; else leave the comparison; else the screen."""
        if self.benchmark.running:
            self.nanochat.attempt(self.benchmark.stop())
        elif self._view == "compare":
            self.action_show("kept")
        else:
            self.dismiss()

    def action_show(self, view: View) -> None:
        """Go to a view."""
        self._view = view
        names = {
            "measure": "bench-measure",
            "run": "bench-run",
            "kept": "bench-kept-box",
            "compare": "bench-compare",
        }
        self.query_one("#bench-views", ContentSwitcher).current = names[view]
        focus = {
            "measure": "#bench-presets",
            "run": "#bench-run",
            "kept": "#bench-kept",
            "compare": "#bench-compare",
        }
        self.query_one(focus[view]).focus()
        self._refresh()

    def action_turn(self, by: int) -> None:
        """Go to the view beside this one."""
        place = _ORDER.index(self._view) if self._view in _ORDER else len(_ORDER) - 1
        self.action_show(_ORDER[(place + by) % len(_ORDER)])

    def action_repeats(self, by: int) -> None:
        """More repeats or fewer."""
        self._repeats = min(max(self._repeats + by, 1), _MOST_REPEATS)
        self._refresh()

    def action_against(self) -> None:
        """Measure Transformers beside, or not."""
        self._against = not self._against
        self._refresh()

    def action_mark(self) -> None:
        """Mark the run for a comparison; a third mark takes the place of the first."""
        run = self._highlighted_run
        if self._view != "kept" or run is None:
            return
        if run.id in self._marked:
            self._marked.remove(run.id)
        else:
            self._marked = [*self._marked, run.id][-2:]
        self._show_kept()

    def action_compare(self) -> None:
        """Compare the two marked runs, or the highlighted one with the marked one, or with the last one like it."""
        runs = [run for run in self._kept if isinstance(run, Run)]
        chosen = [run for run in runs if run.id in self._marked]
        run = self._highlighted_run
        if len(chosen) < 2 and run is not None and run not in chosen:
            chosen.append(run)
        if len(chosen) < 2 and run is not None:
            earlier = runs[runs.index(run) + 1 :]
            like = [
                each
                for each in earlier
                if (each.preset, each.model["name"]) == (run.preset, run.model["name"])
            ]
            chosen += (like or earlier)[:1]
        if len(chosen) < 2:
            self.nanochat.say("Mark two runs with Space, then c compares them.", severity="warning")
            return
        before, after = sorted(chosen[:2], key=lambda each: each.id)
        self._compared = (before, after)
        self.action_show("compare")

    def action_copy(self) -> None:
        """Copy the comparison, or the run as Markdown."""
        text = self._markdown()
        if text:
            self.nanochat.copy(text, "the comparison" if self._view == "compare" else "the results")

    def action_export(self) -> None:
        """Write the run or the comparison to a file."""
        self.nanochat.attempt(self._export())

    async def _export(self) -> None:
        from nanochat.ui.screens.question import Answer, Question

        folder = self.nanochat.folder
        if self._view == "compare" and self._compared is not None:
            before, after = self._compared
            path = folder / f"nanochat-compare-{before.id}-{after.id}.md"
            await asyncio.to_thread(write_new, path, self._markdown())
            self.nanochat.say(f"Written to {path}.")
            return
        run = self._highlighted_run if self._view == "kept" else self.shown
        if run is None or not run.rows:
            raise UsageError("there is no result to export yet")
        answers = [Answer(key, label, about) for key, label, about in _FORMATS]
        kind = await self.nanochat.ask(Question("Export", f"To a new file in {folder}.", answers))
        if kind is not None:
            path = folder / f"nanochat-bench-{run.id}.{kind}"
            await asyncio.to_thread(write_new, path, _as(run, kind))
            self.nanochat.say(f"Written to {path}.")

    def _markdown(self) -> str:
        if self._view == "compare" and self._compared is not None:
            lines = comparison_lines(compare(*self._compared))
            return "```\n" + "\n".join(lines) + "\n```\n"
        run = self._highlighted_run if self._view == "kept" else self.shown
        return markdown(run) if run is not None else ""

    @property
    def _highlighted_run(self) -> Run | None:
        place = self.query_one("#bench-kept", OptionList).highlighted
        run = self._kept[place] if place is not None and place < len(self._kept) else None
        return run if isinstance(run, Run) else None

    # Showing -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The run has come further, or ended."""
        if not self.is_mounted:
            return
        if not self.benchmark.running:
            self.nanochat.attempt(self._read_kept())
        self._refresh()

    def on_resize(self) -> None:
        """Texts that depend on the width."""
        self._show_kept()
        self._refresh()

    def _refresh(self) -> None:
        """Everything that is not in a list."""
        benchmark, width = self.benchmark, self.app.size.width - 4
        self.set_class(benchmark.running, "-running")
        views = (*_ORDER, "compare") if self._view == "compare" else _ORDER
        self.query_one(ViewStrip).show([_TITLES[view] for view in views], views.index(self._view))
        hints = _RUNNING if benchmark.running else _HINTS[self._view]
        self.query_one("#bench-hint", Static).update(Content(_fitting(hints, self.app.size.width - 2)))
        live = bench_text.live(
            benchmark.progress, benchmark.word, benchmark.rates, width, stopping=benchmark.stopping
        )
        self.query_one("#bench-live", Static).update(live)
        self.query_one("#bench-about", Static).update(self._about())
        self._refresh_run()
        if self._compared is not None:
            before, after = self._compared
            words = bench_text.comparison(before, after, compare(before, after), width)
            self.query_one("#bench-words", Static).update(words)

    def _refresh_run(self) -> None:
        """The results: words at every call, table and pictures when the run has another row."""
        run, benchmark = self.shown, self.benchmark
        facts, small = self.query_one("#bench-facts", Static), self.query_one("#bench-small", Static)
        if run is not None:
            facts.update(bench_text.facts(run, under_way=benchmark.running and run is benchmark.run))
            small.update(bench_text.small_print(run))
        else:
            nothing = "" if benchmark.running else "Nothing has been measured yet: 1 chooses what."
            style = "$error" if benchmark.error else "$foreground 60%"
            failed = f"It could not be measured: {benchmark.error}" if benchmark.error else nothing
            facts.update(Content.styled(sanitize_line(failed), style))
            small.update("")
        if run is not self._drawn:
            self._drawn = run
            self.query_one(ResultTable).show(run)
            self.nanochat.attempt(self._draw(run))

    async def _draw(self, run: Run | None) -> None:
        """The pictures of a run."""
        charts = self.query_one("#bench-charts", Vertical)
        async with self.batch():
            await charts.remove_children()
            ascii_only = self.nanochat.desk.ascii_only
            found = charts_of(run) if run is not None else []
            await charts.mount_all([ChartView(chart, ascii_only=ascii_only) for chart in found])

    def _about(self) -> Content:
        against = " · against Transformers" if self._against else ""
        repeats = f"{self._repeats} repeat{'' if self._repeats == 1 else 's'} after a warm-up{against}"
        return Content.assemble(
            (ABOUT[self._preset], ""), "\n", (repeats, "bold"), ("  Chats wait meanwhile.", "$foreground 60%")
        )


def _model_line(model: LocalModel | str) -> Content:
    if isinstance(model, str):
        return Content.assemble(model, ("  random weights", "$foreground 60%"))
    note = "  starter" if model.name == starter.NAME else ""
    return Content.assemble(
        sanitize_line(model.name), (f"  {figures.size(model.size)}{note}", "$foreground 60%")
    )


def _fitting(hints: tuple[str, ...], width: int) -> str:
    """As many of the hints as fit on one row, the first ones first."""
    while len(hints) > 1 and len(" · ".join(hints)) > width:
        hints = hints[:-1]
    return " · ".join(hints)


def _as(run: Run, kind: str) -> str:
    if kind == "svg":
        from nanochat.benchmarks.plot import svg

        return svg(run)
    if kind == "json":
        return json.dumps(run.as_dict(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    return as_csv(run) if kind == "csv" else markdown(run)
