"""What the screen of models looks like: one picture a size and theme, and one a state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fake_engine import MODEL, FakeEngine
from fakehome import Home
from fakehub import Hub
from models_stage import CacheShelf, constant_memory, local_model
from stage import make_app, until
from textual.pilot import Pilot
from textual.widgets import Input

from nanochat.errors import NanochatError, Offline
from nanochat.modelhub import catalog
from nanochat.modelhub.catalog import Listing
from nanochat.modelhub.download import Download, State
from nanochat.modelhub.shape import Shape
from nanochat.settings import Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.model_rows import Row, download_row, lines_of
from nanochat.ui.screens.models import ModelsScreen
from nanochat.ui.screens.question import Question
from nanochat.ui.widgets.model_list import ModelList

Compare = Callable[..., bool]
Prepare = Callable[[Pilot[None]], Awaitable[None]]
SHAPE = Shape(
    parameters=8_190_735_360, layers=36, kv_heads=8, head_dim=128, hidden=4096, intermediate=12288,
    vocabulary=151936, context=40960,
)  # fmt: skip
SIZES = [(60, 20), (80, 24), (120, 40), (200, 60)]


def plain(rows: Sequence[Row], width: int) -> str:
    lines = (line for row in rows for line in lines_of(row, width))
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("HOME", str(tmp_path))
    constant_memory(monkeypatch)
    monkeypatch.setattr("nanochat.ui.models_flow.disk_free", lambda _: 80_000_000_000)
    with Hub() as hub:
        home = Home.at(tmp_path, hub, monkeypatch)
        local_model(home)
        yield home


def download(
    name: str, state: State, done: float, note: str = "", error: NanochatError | None = None
) -> Download:
    moving = state is State.DOWNLOADING
    return Download(
        id=f"{name.replace('/', '--')}@main", repo_id=name, revision="main", commit="c" * 40, state=state,
        done=int(done * 16.4e9), total=int(16.4e9), files_done=3, files_total=9, speed=48.2e6 if moving else None,
        seconds_left=200.0 if moving else None, checked=0, note=note, error=error, can_pause=True, folder=None,
        shape=SHAPE,
    )  # fmt: skip


DOWNLOADS = (
    download("Qwen/Qwen3-8B", State.DOWNLOADING, 0.42),
    download("Qwen/Qwen3-4B-Instruct-2507", State.DOWNLOADING, 0.1, "connection lost (reset); trying again in 4 s"),
    download("microsoft/phi-4", State.PAUSED, 0.73),
    download("google/gemma-3-4b-it", State.FAILED, 0.0, "google/gemma-3-4b-it is gated and you are not logged in. 1. Accept its licence"),
)  # fmt: skip
FOUND = tuple(
    Listing(
        repo_id=f"org/chat-{number}", parameters=8_190_735_360, download_size=16_400_000_000, licence="mit",
        context=40960, downloads=10_000 // number, shape=SHAPE if number < 3 else None,
    )
    for number in range(1, 5)
)  # fmt: skip


def pictured(
    home: Home, *, theme: str = "dark", downloads: tuple[Download, ...] = (), query: str = "", row: str = "",
    engine: FakeEngine | None = None,
) -> tuple[NanochatApp, Prepare]:  # fmt: skip
    """The application, and what brings its screen of models into the state of the picture."""
    app = make_app(
        home.root / "nanochat", engine or FakeEngine(), settings=Settings(theme=theme), models=(MODEL,)
    )
    app.desk.shelf = CacheShelf((MODEL,))

    async def prepare(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.desk.is_open and app.chats is not None and len(app.chats) > 0)
        await until(pilot, lambda: app.host.model is not None)
        flow = app.desk.models
        await until(pilot, lambda: flow.downloads._queue is not None and flow.downloads._fresh is not None)
        flow.downloads._look()  # what was left of earlier runs, which is nothing
        flow.downloads.all = downloads
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(flow.rows()) > 8)
        if query:
            await flow.search(query)
        app.screen.query_one(Input).cursor_blink = False
        await pilot.pause()
        models = app.screen.query_one(ModelList)
        place = next(
            (n for n, option in enumerate(models.options) if row and (option.id or "").endswith(row)), None
        )
        if place is not None:
            models.highlighted = place
        await pilot.pause(0.05)

    return app, prepare


@pytest.fixture
def searching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "search", lambda text, limit=20: FOUND)


@pytest.mark.parametrize(
    ("theme", "size"),
    [*(("dark", size) for size in SIZES), ("light", (80, 24))],
    ids=str,
)
def test_downloads_and_models(snap_compare: Compare, home: Home, theme: str, size: tuple[int, int]) -> None:
    app, prepare = pictured(home, theme=theme, downloads=DOWNLOADS)
    assert snap_compare(app, terminal_size=size, run_before=prepare)


@pytest.mark.parametrize("size", [(80, 24), (200, 60)], ids=str)
def test_what_a_search_found(
    snap_compare: Compare, home: Home, searching: None, size: tuple[int, int]
) -> None:
    app, prepare = pictured(home, query="chat", row="hub:org/chat-1")
    assert snap_compare(app, terminal_size=size, run_before=prepare)


def test_without_colour(snap_compare: Compare, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app, prepare = pictured(home, downloads=DOWNLOADS)
    assert snap_compare(app, terminal_size=(80, 24), run_before=prepare)


def test_a_search_offline(snap_compare: Compare, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(text: str, limit: int = 20) -> tuple[Listing, ...]:
        raise Offline(
            "offline: huggingface.co cannot be reached (no route). Models on this machine work without it"
        )

    monkeypatch.setattr(catalog, "search", offline)
    app, prepare = pictured(home)

    async def search(pilot: Pilot[None]) -> None:
        await prepare(pilot)
        await pilot.press("slash", *"chat", "enter")
        await until(pilot, lambda: "offline" in plain(app.desk.models.rows(), 118))
        await pilot.pause(0.1)

    assert snap_compare(app, terminal_size=(120, 40), run_before=search)


def test_a_model_that_is_being_loaded(snap_compare: Compare, home: Home) -> None:
    engine = FakeEngine(load_at_once=False)
    app, prepare = pictured(home, engine=engine)

    async def loading(pilot: Pilot[None]) -> None:
        await prepare(pilot)
        engine.loads[0].bytes, engine.loads[0].progress = (
            (1_200_000_000, 3_400_000_000),
            (0.35, "reading weights"),
        )
        app.desk.models.on_change()
        await pilot.pause(0.05)

    assert snap_compare(app, terminal_size=(80, 24), run_before=loading)


def test_a_model_that_needs_more_asks(snap_compare: Compare, home: Home) -> None:
    app, prepare = pictured(home, row="recommended:Qwen/Qwen3-32B")

    async def ask(pilot: Pilot[None]) -> None:
        await prepare(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.pause(0.1)

    assert snap_compare(app, terminal_size=(80, 24), run_before=ask)


def test_what_a_removal_frees_is_asked(snap_compare: Compare, home: Home) -> None:
    app, prepare = pictured(home)

    async def ask(pilot: Pilot[None]) -> None:
        await prepare(pilot)
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.pause(0.1)

    assert snap_compare(app, terminal_size=(80, 24), run_before=ask)


@pytest.mark.parametrize("width", [30, 40, 54, 55, 77])
def test_how_far_a_download_is_fits_into_every_width(width: int) -> None:
    first = plain([download_row(DOWNLOADS[0])], width).split("\n")[0]
    assert first[:width].count("42 %") == 1
    assert width < 54 or len(first) <= width
