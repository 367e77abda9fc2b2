"""What the sidebar shows, and what is done with a chat that was chosen there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

from nanochat.storage.chats import by_day
from nanochat.ui.commands import chats, editing
from nanochat.ui.widgets.sidebar import Verb

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

TYPING_SECONDS = 0.12


class SidebarFlow:
    """Reads the chats for the sidebar, in a worker, where it is shown. The latest wish wins."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._reading: asyncio.Task[None] | None = None
        self.today: Callable[[], date] = date.today
        self._day = self.today()
        self._known: set[str] = set()

    def refresh(self) -> None:
        """Read again what is shown; costs nothing while the sidebar is hidden."""
        if not self._app.desk.is_open or not self._app.chat_screen.sides.list.display:
            return
        if self._reading is not None:
            self._reading.cancel()
        self._reading = asyncio.create_task(self._read(self._app.chat_screen.sides.list.query_text))

    def every_second(self) -> None:
        """At midnight today becomes yesterday."""
        if self._day != self.today():
            self._day = self.today()
            self.refresh()

    def chat_changed(self, chat_id: str) -> None:
        """A chat that was not in the list yet comes into it with its first message, not with its first reply."""
        if chat_id not in self._known:
            self._known.add(chat_id)
            self.refresh()

    async def open_found(self) -> None:
        """Open the best of what the search finds, once it has caught up with what was typed."""
        while self._reading is not None and not self._reading.done():
            await asyncio.wait({self._reading})  # another may have taken its place meanwhile
        self._app.chat_screen.sides.list.open_highlighted()

    async def act(self, verb: Verb, chat_id: str, message_id: str = "") -> None:
        """Do what the user wants with a chat; `message_id` is the message in it that the search found."""
        app = self._app
        if verb == "undo":
            await editing.undo(app, "")
            await self._back_to_list()
        elif not chat_id:
            return
        elif verb == "open":
            app.chat_screen.keep_draft()
            session = await app.chats.open(chat_id)
            app.chat_screen.show_active()
            if message_id:
                await session.go_to(message_id)
            if message_id and app.shown is session:
                app.chat_screen.call_after_refresh(app.chat_screen.transcript.show_message, message_id)
        elif verb == "rename":
            chat = await asyncio.to_thread(app.history.chats.get, chat_id)
            await chats.rename_chat(app, chat_id, chat.title)
        elif verb == "pin":
            await chats.pin_chat(app, chat_id)
        elif verb == "delete":
            app.chat_screen.sides.list.pass_over(chat_id)
            deleted = chats.delete_chat(app, chat_id)
            await self._back_to_list()
            await deleted
        else:
            await chats.export_one(app, chat_id)

    async def _back_to_list(self) -> None:
        """Showing the chat gave it the focus; the user is still busy here."""
        await self._app.chat_screen.sides.open_list()
        self._app.chat_screen.sides.list.action_to_list()

    async def _read(self, query: str) -> None:
        history, sidebar = self._app.history, self._app.chat_screen.sides.list
        if query:
            await asyncio.sleep(TYPING_SECONDS)
            sidebar.show_found(await asyncio.to_thread(history.search, query), query)
            return
        listed = await asyncio.to_thread(history.chats.list)
        self._known |= {chat.id for chat in listed}
        active = self._app.chats.active.chat
        sidebar.show_days(by_day(listed), active=active.id if active else None, today=self.today())
