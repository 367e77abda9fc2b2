"""The application on a test's stage: its own home, a scripted engine, and waiting for conditions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from fake_engine import MODEL, OTHER, FakeEngine, FakeLanguage, FakeShelf
from textual import events
from textual.pilot import Pilot

from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.ui.app import NanochatApp
from nanochat.ui.desk import Desk
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.status_bar import StatusBar

SECONDS = 60.0  # a busy machine may starve a test for long; only what never comes true waits so long


def paths_in(home: Path) -> Paths:
    return Paths(home / "config", home / "data", home / "cache", home / "log")


def make_app(
    home: Path, engine: FakeEngine | None = None, *, settings: Settings | None = None,
    models: Sequence[LocalModel] = (MODEL, OTHER), ascii_only: bool = False, wanted: str = "",
    tensor_parallel_size: int | None = None,
) -> NanochatApp:  # fmt: skip
    desk = Desk(
        paths_in(home), settings or Settings(theme="dark"), engine=engine or FakeEngine(), shelf=FakeShelf(models),
        read=lambda model: FakeLanguage(model.name), ascii_only=ascii_only, watch_device=False, wanted=wanted,
        tensor_parallel_size=tensor_parallel_size,
    )  # fmt: skip
    app = NanochatApp(desk)
    app.folder = home
    return app


async def until(pilot: Pilot[Any], true: Callable[[], object], what: str = "") -> None:
    """Wait until a condition holds; fail loudly when it does not."""
    end = monotonic() + SECONDS
    while not true():
        if monotonic() > end:
            raise AssertionError(f"it never came true: {what or true}")
        await pilot.pause(0.01)


@dataclass
class Stage:
    """A running application and the hands that drive it."""

    app: NanochatApp
    engine: FakeEngine
    pilot: Pilot[Any]

    async def until(self, true: Callable[[], object], what: str = "") -> None:
        """Wait until a condition holds, and what follows from it is drawn; fail loudly when it does not."""
        await until(self.pilot, true, what)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Write into what has the focus: at once in the prompt, key by key elsewhere."""
        if isinstance(self.app.focused, PromptBox):
            self.app.focused.insert(text)
            await self.pilot.pause()
            return
        names = {" ": "space", "/": "slash", "@": "at", ".": "full_stop"}
        await self.pilot.press(*(names.get(char, char) for char in text))

    async def send(self, text: str) -> None:
        """Type a message and send it; returns when the engine has it or it is queued."""
        await self.type(text)
        await self.pilot.press("enter")
        await self.until(lambda: self.app.chats.active.busy or self.texts(), "the message was sent")

    async def settle(self) -> None:
        """Wait until no reply is on its way."""
        await self.until(lambda: not self.app.chats.busy, "every reply ended")

    async def ask(self, text: str) -> None:
        await self.send(text)
        await self.settle()

    def texts(self) -> list[str]:
        """The messages of the shown chat."""
        return [message.text for message in self.app.chats.active.conversation.messages]

    def statuses(self) -> list[str]:
        return [message.status for message in self.app.chats.active.conversation.messages]

    @property
    def status(self) -> str:
        """What the status bar says."""
        return str(self.app.chat_screen.query_one(StatusBar).render())

    @property
    def notices(self) -> str:
        return "\n".join(str(notice.message) for notice in self.app._notifications)

    @property
    def screen(self) -> str:
        """The name of the screen on top."""
        return type(self.app.screen).__name__


def at_once(stage: Stage, *keys: str) -> None:
    """Press keys without waiting for what any of them does."""
    for key in keys:
        stage.app.post_message(events.Key(key, key if len(key) == 1 else None))


def prompt(stage: Stage) -> str:
    """What stands in the prompt of the shown chat, with what is folded in it."""
    return stage.app.chat_screen.prompt.draft.full


@asynccontextmanager
async def on_stage(
    home: Path, engine: FakeEngine | None = None, *, size: tuple[int, int] = (120, 40), **given: Any
) -> AsyncIterator[Stage]:
    """Run the application and wait until its chats are there."""
    engine = engine or FakeEngine()
    app = make_app(home, engine, **given)
    async with app.run_test(size=size, notifications=True) as pilot:
        stage = Stage(app, engine, pilot)
        await stage.until(lambda: app.desk.is_open and app.chat_screen._shown, "the chats are shown")
        try:
            yield stage
        finally:
            await app.desk.close(app)
