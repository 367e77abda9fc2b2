"""The turns of keys: what one key does is done before the next one comes, also when they come faster than the screen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from textual import events
from textual.dom import DOMNode
from textual.widgets import Input, TextArea

from nanochat.ui.sending import is_command
from nanochat.ui.widgets.prompt_box import PromptBox

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

TICK_SECONDS = 0.1
LONGEST_TICKS = 20  # so long a hold lasts at most; however long the loop stood still, that is one tick
Give = Callable[[events.Event], Awaitable[None]]


class KeyTurns:
    """Textual gives a key to the widget that has the focus when it comes, even while another is on its way to move it.

    So a key that could move the focus holds those behind it until it has been done; text in a text field does not.
    `give` hands an event on as Textual does.
    """

    def __init__(self, app: NanochatApp, give: Give) -> None:
        self._app, self._give = app, give
        self._waiting: deque[events.Event] = deque()
        self._holds: set[object] = set()
        self._typed: events.Event | None = None

    @property
    def waiting(self) -> bool:
        """Whether something has been typed that is still to be handed on."""
        return bool(self._waiting)

    async def take(self, event: events.Key | events.Paste) -> None:
        """Hand on what the terminal sent, or keep it until its turn comes."""
        if self._holds or self._waiting:
            self._waiting.append(event)
        else:
            await self._do(event)

    def hold(self) -> Callable[[], None]:
        """Keep what comes until the returned function is called: something is to be shown, and it is for that."""
        hold, loop = object(), asyncio.get_running_loop()
        self._holds.add(hold)

        def tick(left: int = LONGEST_TICKS) -> None:
            if left and hold in self._holds:
                loop.call_later(TICK_SECONDS, tick, left - 1)
            else:
                release()

        def release() -> None:
            if hold in self._holds:
                self._holds.discard(hold)
                self._app.call_later(self._go_on)

        tick()
        return release

    def until_done(self, work: Awaitable[None]) -> Awaitable[None]:
        """Keep what comes, from now on, until this is done: it shows what that is for. Returns what is to be awaited."""
        return _released(work, self.hold())

    async def _go_on(self) -> None:
        while self._waiting and not self._holds:
            await self._do(self._waiting.popleft())

    async def _do(self, event: events.Event) -> None:
        focused = self._app.focused
        if isinstance(focused, PromptBox) and event is not self._typed and focused.sends(event):
            self._typed = event  # what was typed before it is in the box by then
            self._waiting.appendleft(event)
            self._app.spawn(self._pass([focused], self.hold()))
        elif self._may_move_focus(event, focused):
            release = self.hold()
            await self._give(event)
            self._app.spawn(self._pass([*(focused or self._app.screen).ancestors_with_self] * 2, release))
        else:
            await self._give(event)

    def _may_move_focus(self, event: events.Event, focused: DOMNode | None) -> bool:
        if self._app.screen is not self._app.chat_screen:
            return False
        if isinstance(
            focused, PromptBox
        ):  # what else is done from there stands in its queue, among what is typed
            return focused.sends(event) and is_command(focused.draft)
        text = not isinstance(event, events.Key) or event.is_printable
        return not (text and isinstance(focused, Input | TextArea))

    async def _pass(self, nodes: Sequence[DOMNode], release: Callable[[], None]) -> None:
        """Wait until each of these has done what it was given until then.

        A key comes up from the focused widget to the application, and so does what its action asks for: twice the way.
        """
        try:
            for each in nodes:
                passed = asyncio.Event()
                if each.call_later(passed.set):
                    await passed.wait()
        finally:
            release()


async def _released(work: Awaitable[None], release: Callable[[], None]) -> None:
    try:
        await work
    finally:
        release()
