"""What every screen looks like: one picture a screen and size, in both themes and without colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from pytest_textual_snapshot import SVGImageExtension
from stage import Stage, on_stage
from syrupy.assertion import SnapshotAssertion
from textual.widgets import TextArea

from nanochat.history import History
from nanochat.modelhub import suggestion
from nanochat.modelhub.suggestion import Candidate
from nanochat.settings import Settings
from nanochat.storage.records import Role, Status, Tab
from nanochat.ui import overflow_flow
from nanochat.ui.overflow import Overflow

Picture = Callable[[str], None]

SIZES = {"60x20": "dark", "80x24": "light", "120x40": "dark", "200x60": "light"}
METRICS = {
    "prompt_tokens": 8120, "cached_tokens": 7904, "output_tokens": 512, "ttft": 0.21, "decode_rate": 143.0,
    "prefill_rate": 8412.0,
}  # fmt: skip
QUESTION = "How do I sum the squares of a list?\nPlease with an example."
REASONING = "The user wants the squares of a list summed. A generator is the plain way to do it."
REPLY = """\
Use a **generator** in `sum`:

```python
def sum_of_squares(numbers: list[int]) -> int:
\treturn sum(n * n for n in numbers)  # no list in between
```

| numbers | result |
|:--|--:|
| `[1, 2, 3]` | 14 |
| `[]` | 0 |

1. It reads *one* number at a time.
2. See the [tutorial](https://docs.python.org/3/tutorial/) for more.
"""
LOG = "2026-11-25 10:00:00,000 1 INFO nanochat.app: a line\n2026-11-25 10:00:01,000 1 WARNING nanochat: \x1b[31mred\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with three chats and two tabs, under the same relative path in every run."""
    monkeypatch.chdir(tmp_path)
    home = Path("home")
    (home / "log").mkdir(parents=True)
    (home / "log" / "nanochat.log").write_text(LOG)
    with History.open(home / "data" / "chats") as history:
        chats = [history.chats.create() for _ in range(3)]
        for chat, text in zip(chats, ("What is a monad?", "A plan for the garden", QUESTION), strict=True):
            user = history.messages.add(chat.id, Role.USER, text)
            for variant in ("A first try.", REPLY):
                running = history.replies.begin(chat.id, user.id, model="tiny")
                history.replies.finish(
                    running.id, Status.STOPPED, variant, reasoning=REASONING, metrics=METRICS | {"reasoned": True}
                )  # fmt: skip
        history.chats.pin(chats[1].id)
        history.tabs.save([Tab(chats[2].id, "and as one line?", active=True), Tab(chats[0].id)])
    return home


@pytest.fixture(autouse=True)
def still_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's cursor never blinks: told to stop later, it may stay as it was drawn last, on or off."""
    monkeypatch.setattr(TextArea.cursor_blink, "_default", False)


@pytest.fixture
def picture(snapshot: SnapshotAssertion, tmp_path: Path) -> Callable[[Stage], Picture]:
    """Compares what is on screen with the picture that was looked at and kept."""

    def of(stage: Stage) -> Picture:
        def compare(name: str) -> None:
            svg = stage.app.export_screenshot()
            (tmp_path / f"{name}.svg").write_text(svg)
            same = snapshot(name=name, extension_class=SVGImageExtension) == svg
            assert same, f"{name} looks different: see {tmp_path / name}.svg"

        return compare

    return of


async def walk(stage: Stage, picture: Picture) -> None:
    """Go through every screen."""
    screen = stage.app.chat_screen
    await stage.until(lambda: stage.texts()[-1:] == [REPLY] and not screen.transcript.working)
    await stage.until(lambda: "4 tok" in str(screen.prompt.border_subtitle), "the draft was counted")
    picture("chat")
    await opened(stage, "f2", lambda: screen.sides.list.has_focus_within, picture, "chats")
    await opened(stage, "f6", lambda: screen.sides.panel.has_focus_within, picture, "settings")
    await opened(stage, "f1", lambda: stage.screen == "Page", picture, "help")
    await opened(stage, "f7", lambda: stage.screen == "Page", picture, "numbers")
    await opened(stage, "ctrl+l", lambda: stage.screen == "Page", picture, "log")
    await opened(stage, "ctrl+p", lambda: stage.screen == "Palette", picture, "palette")
    session = stage.app.chats.active
    stage.app.attempt(overflow_flow.ask(stage.app, session, Overflow(33_210, 32_512, 32_768)))
    await opened(stage, "", lambda: stage.screen == "Question", picture, "question")


async def opened(stage: Stage, key: str, there: Callable[[], object], picture: Picture, name: str) -> None:
    """Take the picture of what a key opens, and close it."""
    if key:
        await stage.press(key)
    await stage.until(there, f"{name} is shown")
    for cursor in stage.app.screen.query("Input, TextArea"):
        cursor.cursor_blink = False  # type: ignore[attr-defined]
    await stage.pilot.pause()
    picture(name)
    await stage.press("escape")
    if stage.app.screen is stage.app.chat_screen:
        stage.app.chat_screen.sides.hide()
        stage.app.chat_screen.focus_prompt()
    await stage.until(lambda: stage.screen == "ChatScreen" and stage.app.chat_screen.prompt.has_focus)


@pytest.mark.parametrize("size", SIZES)
async def test_every_screen(picture: Callable[[Stage], Picture], home: Path, size: str) -> None:
    width, height = map(int, size.split("x"))
    async with on_stage(
        home, FakeEngine(context=32768), size=(width, height), settings=Settings(theme=SIZES[size])
    ) as stage:
        await walk(stage, picture(stage))


async def test_every_screen_without_colour(
    picture: Callable[[Stage], Picture], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with on_stage(home, FakeEngine(context=32768), size=(80, 24)) as stage:
        await walk(stage, picture(stage))


@pytest.mark.parametrize("size", SIZES)
async def test_the_first_run(
    picture: Callable[[Stage], Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    width, height = map(int, size.split("x"))
    settings = Settings(theme=SIZES[size])
    # What fits depends on the machine; the picture must not.
    monkeypatch.setattr(suggestion, "candidate", lambda: Candidate("Qwen/Qwen3-4B", 8_100_000_000, 0))
    async with on_stage(tmp_path, size=(width, height), settings=settings, models=()) as stage:
        await stage.until(lambda: "Qwen3-4B" in stage.app.export_screenshot(), "the better model is offered")
        picture(stage)("first-run")
