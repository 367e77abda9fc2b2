"""What the benchmark's screen looks like: every state, in the sizes and themes where it matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bench_runs as runs
import pytest
from stage import Stage, make_app
from textual.pilot import Pilot
from textual.widgets import OptionList

from nanochat.benchmarks.child import Ended, Event
from nanochat.benchmarks.storage import Results
from nanochat.errors import NanochatError
from nanochat.settings import Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.widgets.chart_view import ChartView

Compare = Callable[..., bool]
TOO_LARGE = NanochatError("the weights take 9.00 GiB in bfloat16 and 1.20 GiB is free: take a smaller model")
ENDS: dict[str, list[Event | Exception]] = {
    "running": runs.under_way(),
    "done": [Ended(runs.quick())],
    "partial": [Ended(runs.stopped())],
    "throughput": [Ended(runs.throughput())],
    "chat": [Ended(runs.chat())],
    "error": [TOO_LARGE],
}
KEYS = {"measure": ("down",), "kept": ("3", "space", "down"), "compare": ("3", "space", "down", "down", "c")}
CASES = [
    *(("done", size, "dark") for size in ((60, 20), (80, 24), (120, 40), (200, 60))),
    ("measure", (60, 20), "light"), ("measure", (120, 40), "dark"),
    ("running", (80, 24), "light"), ("partial", (120, 40), "light"), ("error", (80, 24), "dark"),
    ("throughput", (200, 60), "light"), ("kept", (80, 24), "dark"), ("compare", (80, 24), "light"),
]  # fmt: skip


def scene(home: Path, state: str, theme: str) -> tuple[NanochatApp, Callable[[Pilot[None]], object]]:
    """The application, and what brings it into a state."""
    for run in (runs.quick(), runs.throughput(), runs.quick(1.1, name="20260105-120000-dddd")):
        Results(home / "data" / "bench").save(run)
    app = make_app(home, settings=Settings(theme=theme))

    async def play(pilot: Pilot[None]) -> None:
        stage = Stage(app, app.engine, pilot)  # type: ignore[arg-type]
        await stage.until(lambda: app.desk.is_open and app.host.state == "ready")
        process = runs.DrivenProcess()
        app.benchmark.open = process.open
        await stage.press("f4")
        await stage.until(lambda: stage.screen == "BenchScreen")
        models = app.screen.query_one("#bench-models", OptionList)
        await stage.until(lambda: models.highlighted is not None)
        if state in ENDS:
            await stage.press("enter")
            await stage.until(lambda: process.plan is not None)
            process.tell(*ENDS[state])
            if state == "running":
                await stage.until(lambda: len(app.benchmark.rates) == 8)
            else:
                process.tell(None)
                await stage.until(lambda: not app.benchmark.running and app.host.state == "ready")
            if state not in ("error",):
                await stage.until(lambda: app.screen.query(ChartView))
        await stage.press(*KEYS.get(state, ()))
        for _ in range(3):
            await pilot.pause(0.02)

    return app, play


@pytest.mark.parametrize(("state", "size", "theme"), CASES, ids=lambda part: str(part).replace(", ", "x"))
def test_the_screen(
    snap_compare: Compare, tmp_path: Path, state: str, size: tuple[int, int], theme: str
) -> None:
    app, play = scene(tmp_path, state, theme)
    same = snap_compare(app, terminal_size=size, run_before=play)
    app.history.close()
    assert same


def test_without_colour_every_series_has_its_own_sign(
    snap_compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app, play = scene(tmp_path, "chat", "dark")
    same = snap_compare(app, terminal_size=(120, 40), run_before=play)
    app.history.close()
    assert same
