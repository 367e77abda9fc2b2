"""What the sidebar shows, and what is done with a chat that was chosen there."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import TYPE_CHECKING

from nanochat.history_chats import by_day
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

    def refresh(self) -> None:
        """Read again what is shown; costs nothing while the sidebar is hidden."""
        if not self._app.desk.is_open or not self._app.chat_screen.sidebar.display:
            return
        if self._reading is not None:
            self._reading.cancel()
        self._reading = asyncio.create_task(self._read(self._app.chat_screen.sidebar.query_text))

    async def act(self, verb: Verb, chat_id: str) -> None:
        """Do what the user wants with a chat."""
        app = self._app
        if verb == "undo":
            await editing.undo(app, "")
        elif not chat_id:
            return
        elif verb == "open":
            app.chat_screen.keep_draft()
            await app.chats.open(chat_id)
            app.chat_screen.show_active()
        elif verb == "rename":
            chat = await asyncio.to_thread(app.history.chats.get, chat_id)
            await chats.rename_chat(app, chat_id, chat.title)
        elif verb == "pin":
            await chats.pin_chat(app, chat_id)
        elif verb == "delete":
            await chats.delete_chat(app, chat_id)
            app.chat_screen.sidebar.action_to_list()
        else:
            await chats.export_one(app, chat_id)

    async def _read(self, query: str) -> None:
        history, sidebar = self._app.history, self._app.chat_screen.sidebar
        if query:
            await asyncio.sleep(TYPING_SECONDS)
            sidebar.show_found(await asyncio.to_thread(history.search, query), query)
            return
        listed = await asyncio.to_thread(history.chats.list)
        active = self._app.chats.active.chat
        sidebar.show_days(by_day(listed), active=active.id if active else None, today=date.today())
