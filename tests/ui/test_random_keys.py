"""Hundreds of batches of keys, from fixed seeds, over every screen: nothing ends the application, and no text is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bench_runs as runs
import pytest
from fake_engine import FakeEngine
from fakehome import Home
from fakehub import Hub
from models_stage import constant_memory
from stage import Stage, on_stage
from textual import events
from textual.geometry import Size

from nanochat.benchmarks.storage import Results
from nanochat.engine.request import Request
from nanochat.errors import NanochatError, Offline
from nanochat.sanitize import sanitize
from nanochat.ui import sending
from nanochat.ui.app import NanochatApp
from nanochat.ui.download_flow import DownloadFlow
from nanochat.ui.draft import Draft
from nanochat.ui.lifetime import Lifetime
from nanochat.ui.session import ChatSession
from nanochat.ui.widgets.prompt_box import PromptBox

ROUNDS, BATCHES = 5, 8  # for each seed
SIZES = ((80, 24), (120, 40), (30, 8), (60, 16), (200, 60))
LETTERS = [*"abcdefghijklmnopqrstuvwxyzGAZ0123456789", *" /@+-.?[]", "é", "字"]
SCREENS = ["f1", "f2", "f3", "f4", "f5", "f6", "f7", "f12", "ctrl+p", "ctrl+g", "ctrl+f", "ctrl+l"]
TABS = ["ctrl+t", "ctrl+w", "ctrl+pageup", "ctrl+pagedown", *(f"alt+{number}" for number in range(1, 5))]
MOVES = ["up", "down", "left", "right", "pageup", "pagedown", "home", "end", "tab", "shift+tab", "escape",
         "alt+up", "alt+down", "ctrl+up", "ctrl+down", "ctrl+left", "ctrl+right"]  # fmt: skip
LOOKS = [
    "left",
    "right",
    "pageup",
    "pagedown",
    "home",
    "end",
    "tab",
    "shift+tab",
    "escape",
    "alt+up",
    "alt+down",
]
WRITES = ["enter", "ctrl+j", "backspace", "delete", "ctrl+u", "ctrl+k", "ctrl+a", "ctrl+e", "ctrl+d", "ctrl+x",
          "ctrl+v", "ctrl+y", "ctrl+shift+k", "shift+left", "shift+home", "ctrl+r", "ctrl+c", "ctrl+o"]  # fmt: skip
COMMANDS = ("/fork", "/edit", "/retry", "/continue", "/drop", "/undo", "/pin", "/rename Mine", "/delete", "/reopen",
            "/system Be brief.", "/set temperature 0.5", "/think on", "/export chat.md", "/import chat.md", "/idle",
            "/theme", "/model long", "/unload", "/search word", "/nonsense", "/next", "/previous", "/copy", "/code",
            "/tab 2", "/panel", "/import nothing")  # fmt: skip
PASTES = (
    "one line",
    "\x1b[31mred\x1b[0m",
    "line\n" * 30,
    "\u202ebidi\u202c and a tab\t",
    "x" * 3000,
    "@file ",
    "\r\n",
)
NAMES = {" ": "space", "/": "slash", "@": "at", "+": "plus", "-": "minus", ".": "full_stop", "?": "question_mark",
         "[": "left_square_bracket", "]": "right_square_bracket"}  # fmt: skip


def replies(request: Request) -> Iterator[str]:
    """Replies of every kind, always the same one to the same prompt length."""
    kinds = (
        "Hello there.", "# A title\n\n- one\n- two\n\n```python\nprint(1)\n```\n", "<think>so</think>An answer.",
        "| a | b |\n|---|---|\n| 1 | 2 |\n", "word " * 400, "\x1b]0;evil\x07 [link](https://example.org)\n" * 5, "",
    )  # fmt: skip
    text = kinds[len(request.prompt_ids) % len(kinds)]
    yield from (text[at : at + 20] for at in range(0, len(text), 20))


@dataclass
class Monkey:
    """Presses keys, and knows which text the application must still have."""

    stage: Stage
    dice: random.Random
    pressed: list[str] = field(default_factory=list)

    @property
    def story(self) -> str:
        """What was pressed last, for a report."""
        return "\n" + "\n".join(self.pressed[-60:])

    async def round(self, number: int) -> None:
        """Batches of anything; then a text, and batches of what must leave it alone."""
        for _ in range(BATCHES):
            await self.batch()
        await self.come_back()
        text = f"text {number} of the user"
        self.stage.app.chat_screen.prompt.load_draft(Draft(text))
        for _ in range(BATCHES // 2):
            await self.keys(SCREENS, TABS, LOOKS)
            self.stage.app.chat_screen.keep_draft()
            assert text in self.kept(), self.story
            await self.come_back()

    async def batch(self) -> None:
        """Some keys, a command, a paste, a click or another size."""
        kind, width, height = self.dice.randrange(10), *self.stage.app.size
        if kind == 0:
            size = Size(*self.dice.choice(SIZES))
            self.stage.app._driver._size = size  # type: ignore[union-attr]
            self.send(events.Resize(size, size))
        elif kind == 1:
            self.send(events.Paste(self.dice.choice(PASTES)))
        elif kind == 2:
            x, y = self.dice.randrange(width), self.dice.randrange(height)
            for event in (events.MouseDown, events.MouseUp):
                self.send(event(None, x, y, 0, 0, 1, False, False, False, x, y))
        elif kind == 3:
            self.press(["ctrl+a", "ctrl+k", *self.dice.choice(COMMANDS), "escape", "enter"])
        else:
            groups = (
                (LETTERS, WRITES),
                (SCREENS, MOVES),
                (LETTERS, MOVES, ["enter"]),
                (TABS, LETTERS),
                (SCREENS, LETTERS),
            )
            await self.keys(*self.dice.choice(groups))
        await self.settle()

    async def keys(self, *groups: list[str]) -> None:
        """Keys one after the other, or all at once as when the machine was busy."""
        waits = self.dice.random() < 0.3
        for _ in range(self.dice.randint(1, 9)):
            self.press([self.dice.choice(self.dice.choice(groups))])
            if waits:
                await self.settle()
        await self.settle()

    def press(self, keys: list[str]) -> None:
        for key in keys:
            self.send(events.Key(NAMES.get(key, key), key if len(key) == 1 else None))

    def send(self, event: events.Event) -> None:
        self.pressed.append(repr(event))
        self.stage.app.post_message(event)

    async def settle(self, *, done: bool = False) -> None:
        """Until everything that was pressed has been taken, what it began may go on; or also done, but for what waits
        for an answer.
        """
        app = self.stage.app
        for _ in range(100):
            await self.stage.pilot._wait_for_screen()
            assert app.fault is None and app.is_running, self.story
            pumps = (app, *app.screen.walk_children(with_self=True))
            under_way = app.chats.busy or any(not one.is_finished for one in app.workers)
            awaited = done and under_way and not app.screen.is_modal
            if not (awaited or app.key_turns.waiting or any(pump.message_queue_size for pump in pumps)):
                return
            await asyncio.sleep(0.01)

    async def come_back(self) -> None:
        """Esc leads to the chat's prompt from everywhere."""
        app = self.stage.app
        for _ in range(12):
            if (
                self.stage.screen == "ChatScreen"
                and isinstance(app.focused, PromptBox)
                and not app.chats.active.editing
            ):
                return
            self.press(["escape"])
            await self.settle(done=True)
        raise AssertionError(f"Esc does not lead back from {self.stage.screen}, {app.focused}: {self.story}")

    def kept(self) -> str:
        """Every text of the user: in tabs, with chats, in tabs that were closed, and sent."""
        app = self.stage.app
        kept = [chat.draft for deleted in (False, True) for chat in app.history.chats.list(deleted=deleted)]
        closed = [tab.draft for _, tab in app.chats._closed]
        tabs = [session.unsent for session in app.chats]
        return "\n".join([*tabs, *kept, *closed, *app.inputs.entries, *self.history()])

    def history(self) -> list[str]:
        """Every message that was ever sent."""
        with self.stage.app.history.database.read() as connection:
            return [row[0] for row in connection.execute("SELECT content FROM messages")]

    def check(self, session: ChatSession, draft: Draft, *, given_back: bool) -> None:
        """What was sent is in the history; what could not be sent stands in the prompt again."""
        text = sanitize(draft.full)
        if given_back:
            app = self.stage.app
            found = "\n".join([app.chat_screen.prompt.draft.full, session.unsent, *app.inputs.entries])
        elif draft.text.startswith("/"):
            return
        else:
            found = "\n".join(self.history())
        assert text in sanitize(found), self.story


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network, on which nothing is downloaded and no browser opened."""

    async def offline(*_: object) -> str:
        raise Offline("there is no network here")

    async def stay(*_: object, **__: object) -> None:
        """Who quits sees nothing more."""

    with Hub() as hub:
        Home.at(tmp_path, hub, monkeypatch)
    constant_memory(monkeypatch)
    monkeypatch.setattr(DownloadFlow, "add", offline)
    monkeypatch.setattr("nanochat.ui.links._open", lambda url: False)
    monkeypatch.setattr(Lifetime, "end", stay)
    for run in (runs.quick(), runs.throughput()):
        Results(tmp_path / "data" / "bench").save(run)
    return tmp_path


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_pressed_nothing_ends_and_no_text_is_lost(
    home: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, message = sending.send, sending._message

    async def watch(sent: Awaitable[None], session: ChatSession, draft: Draft) -> None:
        try:
            await sent
        except NanochatError:
            monkey.check(session, draft, given_back=True)
            raise
        monkey.check(session, draft, given_back=False)

    def watched(app: NanochatApp, draft: Draft) -> Awaitable[None]:
        assert app.chat_screen.shown is not None  # a command may show another at once
        session = app.chat_screen.shown
        sent = send(app, draft)
        if sending.is_command(draft):
            return watch(sent, session, draft)
        assert sanitize(draft.full) in sanitize(session.unsent), monkey.story  # it is being sent, or waits
        return sent

    def watched_message(app: NanochatApp, session: ChatSession, draft: Draft, edited: str) -> Awaitable[None]:
        return watch(message(app, session, draft, edited), session, draft)

    monkeypatch.setattr(sending, "send", watched)
    monkeypatch.setattr(sending, "_message", watched_message)
    async with on_stage(home, FakeEngine(script=replies), size=SIZES[seed]) as stage:
        process = runs.DrivenProcess()
        process.tell(*runs.under_way())
        stage.app.benchmark.open = process.open
        monkey = Monkey(stage, random.Random(seed))
        for number in range(ROUNDS):
            await monkey.round(number)
