"""The application's beginning and end: everything is opened behind the first frame, and saved before the last."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.ui.heartbeat import Heartbeat

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp


class Lifetime:
    """Owned by the application."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self.begun = asyncio.Event()  # the chats are shown
        self.failure: NanochatError | None = None  # why they never will be

    async def begin(self) -> None:
        """Open the chats and show them; where they cannot be opened the application ends."""
        app = self._app
        try:
            await app.desk.open(app)
        except NanochatError as error:
            self.failure = error
            app.exit(return_code=error.exit_code)
            return
        await app.chat_screen.add_transcript()
        app.chat_screen.show_active()
        self.begun.set()
        Heartbeat(app).begin()
        if app.unknown_theme:
            app.say(f"There is no theme {app.settings.theme!r}.", severity="warning")
        app.attempt(app.desk.welcome(app))

    async def end(self, *, ask: bool = True) -> None:
        """Save everything and end; asks first when replies are on their way. Asked again, it goes on with that."""
        app = self._app
        if ask and app.desk.is_open and app.chats.busy and not await self._sure():
            return
        if app.desk.is_closing:
            return
        try:
            await app.desk.close(app)
        finally:
            app.exit()

    async def _sure(self) -> bool:
        from nanochat.ui.screens.question import Answer, Question

        number = len(self._app.chats.busy)
        text = f"{number} {'reply is' if number == 1 else 'replies are'} still being written."
        answers = [Answer("quit", "Quit", "What has come is saved."), Answer("stay", "Stay")]
        return await self._app.ask(Question("Quit nanochat?", text, answers)) == "quit"
