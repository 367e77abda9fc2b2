"""What is looked at again and again while the application runs: figures five times a second, and every second the rest."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from nanochat.errors import HistoryError
from nanochat.ui.backups import Backups
from nanochat.ui.model_host import HostState

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.heartbeat")

BEAT_SECONDS = 0.2


class Heartbeat:
    """Owned by the application once the chats are there; it beats until the end."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._backups = Backups(app.history)
        self._beats = 0

    def begin(self) -> None:
        """Beat from now on."""
        self._app.set_interval(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        """Figures, while something is under way; every fifth time, what can wait a second."""
        app = self._app
        self._beats += 1
        if app.chats.busy or app.desk.loading:
            if self._beats % 3 == 0:
                for session in app.chats.busy:
                    if session.reply is not None:
                        session.reply.sample_rate()
            app.chat_screen.surroundings.refresh()
        if self._beats % 5 == 0:
            app.attempt(self._every_second())

    async def _every_second(self) -> None:
        """What another nanochat wrote, a model that nobody uses, and another day."""
        app = self._app
        if app.desk.is_closing:
            return
        app.host.look()
        app.desk.sidebar.every_second()
        self._unload_unused()
        if await asyncio.to_thread(app.history.changed):
            try:
                await asyncio.to_thread(app.history.replies.recover)
            except HistoryError as error:
                log.warning("replies of another nanochat could not be recovered: %s", error)
            if not app.chats.active.busy:
                await app.chats.active.load()
            app.desk.sidebar.refresh()
        await self._backups.look(busy=bool(app.chats.busy))

    def _unload_unused(self) -> None:
        host, minutes = self._app.host, self._app.settings.idle_unload_minutes
        if self._app.chats.busy:
            host.last_used = monotonic()
        elif minutes > 0 and monotonic() - host.last_used > 60 * minutes and host.state is HostState.READY:
            log.info("unloading a model that was idle for %s minutes", minutes)
            host.unload()
