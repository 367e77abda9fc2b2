"""The benchmark's screen: choose and start, watch, read the results, look at kept runs, compare two of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, ContentSwitcher, OptionList, Static

from nanochat.bench import Run
from nanochat.benchmarks.comparison import compare
from nanochat.benchmarks.report import markdown
from nanochat.benchmarks.storage import Results
from nanochat.errors import UsageError
from nanochat.ui import bench_text
from nanochat.ui.bench_export import FORMATS, comparison_as_markdown, run_as
from nanochat.ui.benchmark import Benchmark, kept_runs, plan_for
from nanochat.ui.exporting import write_new
from nanochat.ui.screens.bench_views import ORDER, PLACES, View, hint, names_at
from nanochat.ui.screens.leaving import LeftOnce
from nanochat.ui.widgets.bench_choices import BenchChoices
from nanochat.ui.widgets.bench_results import BenchResults
from nanochat.ui.widgets.kept_runs import KeptRuns
from nanochat.ui.widgets.view_strip import ViewStrip

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


class BenchScreen(LeftOnce, Screen[None]):
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
        self._opened: Run | None = None  # a kept run that is shown instead of the latest
        self._compared: tuple[Run, Run] | None = None

    def compose(self) -> ComposeResult:
        """Head, progress, one of four views, and what the keys do."""
        yield ViewStrip("Benchmark", id="bench-head")
        yield Static(id="bench-live")
        with ContentSwitcher(initial="bench-measure", id="bench-views"):
            yield BenchChoices()
            yield BenchResults()
            yield KeptRuns()
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
    def _choices(self) -> BenchChoices:
        return self.query_one(BenchChoices)

    @property
    def _kept(self) -> KeptRuns:
        return self.query_one(KeptRuns)

    # Choosing ----------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """The models on this machine and the kept runs."""
        installed = await asyncio.to_thread(self.nanochat.shelf.installed)
        if self.left:
            return
        used = self.nanochat.host.model
        self._choices.fill(installed, used.path if used is not None else None)
        await self._read_kept()
        self._refresh()

    async def _read_kept(self) -> None:
        runs = await kept_runs(Results(self.nanochat.paths.data / "bench"))
        if not self.left:
            self._kept.fill(runs)

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
        if event.place < len(ORDER):
            self.action_show(ORDER[event.place])

    @on(OptionList.OptionSelected, "#bench-kept")
    def _kept_chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        run = self._kept.at(event.option_index)
        if run is not None:
            self._opened = run
            self.action_show("run")

    async def _start(self) -> None:
        settings, choices = self.nanochat.settings, self._choices
        plan = await asyncio.to_thread(
            plan_for, choices.preset, choices.model, cache=self.nanochat.paths.cache, device=settings.device,
            dtype=settings.dtype, tensor_parallel_size=self.nanochat.desk.tensor_parallel_size,
            repeats=choices.repeats, against=choices.against,
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
        if self.left:
            return
        self._view = view
        shown, focused = PLACES[view]
        self.query_one("#bench-views", ContentSwitcher).current = shown
        self.query_one(focused).focus()
        self._refresh()

    def action_turn(self, by: int) -> None:
        """Go to the view beside this one."""
        place = ORDER.index(self._view) if self._view in ORDER else len(ORDER) - 1
        self.action_show(ORDER[(place + by) % len(ORDER)])

    def action_repeats(self, by: int) -> None:
        """More repeats or fewer."""
        self._choices.change_repeats(by)

    def action_against(self) -> None:
        """Measure Transformers beside, or not."""
        self._choices.turn_against()

    def action_mark(self) -> None:
        """Mark the highlighted run for a comparison."""
        if self._view == "kept":
            self._kept.mark()

    def action_compare(self) -> None:
        """Compare two kept runs."""
        pair = self._kept.pair()
        if pair is None:
            self.nanochat.say("Mark two runs with Space, then c compares them.", severity="warning")
            return
        self._compared = pair
        self.action_show("compare")

    def action_copy(self) -> None:
        """Copy the comparison, or the run as Markdown."""
        if self._view == "compare" and self._compared is not None:
            self.nanochat.copy(comparison_as_markdown(*self._compared), "the comparison")
        elif (run := self._at_hand) is not None:
            self.nanochat.copy(markdown(run), "the results")

    def action_export(self) -> None:
        """Write the run or the comparison to a file."""
        self.nanochat.attempt(self._export())

    async def _export(self) -> None:
        folder = self.nanochat.folder
        if self._view == "compare" and self._compared is not None:
            before, after = self._compared
            path, text = (
                folder / f"nanochat-compare-{before.id}-{after.id}.md",
                comparison_as_markdown(before, after),
            )
        else:
            from nanochat.ui.screens.question import Answer, Question

            run = self._at_hand
            if run is None or not run.rows:
                raise UsageError("there is no result to export yet")
            answers = [Answer(key, label, about) for key, label, about in FORMATS]
            kind = await self.nanochat.ask(Question("Export", f"To a new file in {folder}.", answers))
            if kind is None:
                return
            path, text = folder / f"nanochat-bench-{run.id}.{kind}", run_as(run, kind)
        await asyncio.to_thread(write_new, path, text)
        self.nanochat.say(f"Written to {path}.")

    @property
    def _at_hand(self) -> Run | None:
        """The run that copying and exporting mean."""
        return self._kept.highlighted if self._view == "kept" else self.shown

    # Showing -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The run has come further, or ended."""
        if not self.is_mounted or self.left:
            return
        if not self.benchmark.running:
            self.nanochat.attempt(self._read_kept())
        self._refresh()

    def on_resize(self) -> None:
        """Texts that depend on the width."""
        self._kept.redraw()
        self._refresh()

    def _refresh(self) -> None:
        """Everything that is not in a list."""
        if self.left:
            return
        benchmark, width = self.benchmark, self.app.size.width - 4
        self.set_class(benchmark.running, "-running")
        self.query_one(ViewStrip).show(*names_at(self._view))
        keys = hint(self._view, self.app.size.width - 2, running=benchmark.running)
        self.query_one("#bench-hint", Static).update(Content(keys))
        live = bench_text.live(
            benchmark.progress, benchmark.word, benchmark.rates, width, stopping=benchmark.stopping
        )
        self.query_one("#bench-live", Static).update(live)
        self._choices.describe()
        run = self.shown
        results = self.query_one(BenchResults)
        under_way = benchmark.running and run is benchmark.run
        if results.show(run, running=benchmark.running, under_way=under_way, error=benchmark.error):
            self.nanochat.attempt(results.draw(ascii_only=self.nanochat.desk.ascii_only))
        if self._compared is not None:
            before, after = self._compared
            words = bench_text.comparison(before, after, compare(before, after), width)
            self.query_one("#bench-words", Static).update(words)
