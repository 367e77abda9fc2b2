"""The list of kept runs, and which two of them are to be compared."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nanochat.bench import Run
from nanochat.ui import bench_text
from nanochat.ui.widgets.choices import Choices


class KeptRuns(Vertical):
    """The newest first; of one that cannot be read, why."""

    def __init__(self) -> None:
        super().__init__(id="bench-kept-box")
        self._runs: list[Run | str] = []
        self._marked: list[str] = []  # ids of runs, the older mark first

    def compose(self) -> ComposeResult:
        """One list."""
        yield Choices(id="bench-kept")

    def fill(self, runs: Sequence[Run | str]) -> None:
        """List these."""
        self._runs = list(runs)
        self.redraw()

    def redraw(self) -> None:
        """Write the lines again, for another width or another mark."""
        listed = self.query_one("#bench-kept", OptionList)
        place = listed.highlighted
        listed.clear_options()
        width = self.app.size.width - 4
        listed.add_options(
            Option(bench_text.kept_line(run, isinstance(run, Run) and run.id in self._marked, width))
            for run in self._runs
        )
        listed.highlighted = min(place or 0, len(self._runs) - 1) if self._runs else None

    def at(self, place: int) -> Run | None:
        """The run in a line; None where it cannot be read."""
        run = self._runs[place]
        return run if isinstance(run, Run) else None

    @property
    def highlighted(self) -> Run | None:
        """The run under the cursor."""
        place = self.query_one("#bench-kept", OptionList).highlighted
        return self.at(place) if place is not None and place < len(self._runs) else None

    def mark(self) -> None:
        """Mark the highlighted run, or take its mark away; a third mark takes the place of the first."""
        run = self.highlighted
        if run is None:
            return
        if run.id in self._marked:
            self._marked.remove(run.id)
        else:
            self._marked = [*self._marked, run.id][-2:]
        self.redraw()

    def pair(self) -> tuple[Run, Run] | None:
        """The two marked runs, or the highlighted one with the marked one, or with the last one like it; older first."""
        runs = [run for run in self._runs if isinstance(run, Run)]
        chosen = [run for run in runs if run.id in self._marked]
        run = self.highlighted
        if len(chosen) < 2 and run is not None and run not in chosen:
            chosen.append(run)
        if len(chosen) < 2 and run is not None:
            earlier = runs[runs.index(run) + 1 :]
            like = [each for each in earlier if _kind(each) == _kind(run)]
            chosen += (like or earlier)[:1]
        if len(chosen) < 2:
            return None
        before, after = sorted(chosen[:2], key=lambda each: each.id)
        return before, after


def _kind(run: Run) -> tuple[str, str]:
    return run.preset, run.model["name"]
