"""Work that the application has under way beside everything else: what it says when it fails, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from textual.css.query import NoMatches

from nanochat.errors import NanochatError

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.errands")


class Errands:
    """Runs coroutines that nobody waits for. An error of ours becomes a word to the user; any other is a `fault`.

    Nothing goes on half alive: a fault ends the application.
    """

    def __init__(self, app: NanochatApp, fault: Callable[[Exception], None]) -> None:
        self._app, self._fault = app, fault
        self._tasks: set[asyncio.Task[Any]] = set()

    async def attempt(self, work: Awaitable[object]) -> None:
        """See it through; what it meets where the screen was taken down is no fault."""
        try:
            await work
        except NanochatError as error:
            log.info("%s: %s", type(error).__name__, error)
            self._app.say(str(error), severity="warning")
        except NoMatches:
            if not self._app.desk.is_closing:
                raise
            log.debug("the screen was taken down before this was done")

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Begin it in the background, until `cancel`."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """End what was spawned."""
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, NanochatError):
            self._app.say(str(error), severity="warning")
        elif isinstance(error, Exception):
            self._fault(error)
