"""The queue of downloads beside the screens: it goes on while the user chats, and says so in the status bar."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from nanochat.errors import NanochatError
from nanochat.hub import cache_folder
from nanochat.modelhub.download import RUNNING, Download, State
from nanochat.ui.background import detached
from nanochat.ui.model_host import HostState
from nanochat.ui.shelf import short_name

if TYPE_CHECKING:
    from nanochat.modelhub.downloads import Downloads
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.download_flow")

LOOK_SECONDS = 0.2


class DownloadFlow:
    """Owns the queue. Belongs to the screen's thread; everything that touches the disk runs in others.

    `all` is the latest picture of the queue, taken by the thread that saw a change.
    """

    def __init__(self, app: NanochatApp, on_change: Callable[[], None], on_ready: Callable[[], None]) -> None:
        self.all: tuple[Download, ...] = ()
        self._app, self._on_change, self._on_ready = app, on_change, on_ready
        self._queue: Downloads | None = None
        self._fresh: tuple[Download, ...] | None = None
        self._ended: set[str] = set()
        self._noted = False
        self._drawing = threading.Lock()

    async def open(self) -> None:
        """Go on with what earlier runs left and nobody paused."""
        from nanochat.modelhub.downloads import Downloads

        paths = self._app.paths
        queue = Downloads(paths.data, cache_folder(), on_change=self._rung)
        self._queue = queue
        left = await detached(queue.restore)
        self._app.set_interval(LOOK_SECONDS, self._look)
        going = [one for one in left if one.state is not State.PAUSED]
        if going:
            names = ", ".join(short_name(one.repo_id) for one in going)
            self._app.say(f"The download of {names} goes on where it stopped.")

    async def add(self, repo_id: str) -> str:
        """Queue a model; its id in the queue. Raises UsageError for what is no name."""
        queue = self._opened()
        added = await detached(lambda: queue.add(repo_id))
        self._ended.discard(added.id)
        self._look()
        return added.id

    async def pause(self, download_id: str) -> None:
        """Stop one and keep every byte. Raises UsageError when it cannot pause."""
        queue = self._opened()
        await detached(lambda: queue.pause(download_id))
        self._look()

    async def resume(self, download_id: str) -> None:
        """Go on with one that is paused or failed."""
        queue = self._opened()
        self._ended.discard(download_id)
        await detached(lambda: queue.resume(download_id))
        self._look()

    async def cancel(self, download_id: str) -> None:
        """Stop one, and remove what it has fetched."""
        queue = self._opened()
        await detached(lambda: queue.cancel(download_id))
        self._look()

    def close(self) -> None:
        """Stop all and keep every byte; the next start goes on. Blocks for a moment: call from a worker."""
        if self._queue is not None:
            self._queue.close()

    def find(self, repo_id: str) -> Download | None:
        """The download of a model, where there is one."""
        return next((one for one in self.all if one.repo_id == repo_id), None)

    @property
    def note(self) -> str:
        """A word for the status bar; empty when nothing is under way."""
        active = [one for one in self.all if one.state in RUNNING or one.state is State.QUEUED]
        if not active:
            return "↓ failed" if any(one.state is State.FAILED for one in self.all) else ""
        total = sum(one.total or 0 for one in active)
        share = int(100 * sum(one.done for one in active) / total) if total else 0
        return f"↓ {share:2d} %" + (f" of {len(active)}" if len(active) > 1 else "")

    # Inside ------------------------------------------------------------------------------------

    def _opened(self) -> Downloads:
        if self._queue is None:
            raise NanochatError("the downloads are not open yet: try again in a moment")
        return self._queue

    def _rung(self) -> None:
        """Something changed. Called by the queue's threads: takes the picture there, and rings no bell of ours."""
        with self._drawing:  # the later picture wins
            if self._queue is not None:
                self._fresh = self._queue.all()

    def _look(self) -> None:
        """Five times a second: show what is new."""
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            return
        self.all = tuple(one for one in fresh if one.state not in (State.READY, State.CANCELLED))
        for one in fresh:
            if one.id not in self._ended and one.state in (State.READY, State.CANCELLED, State.FAILED):
                self._ended.add(one.id)
                self._app.attempt(self._end(one))
        note = self.note
        if note or self._noted:
            self._noted = bool(note)
            self._app.note = note
            self._app.chat_screen.surroundings.refresh_status()
        self._on_change()

    async def _end(self, one: Download) -> None:
        """A download has come to an end: say which, and use the model where the user waits for one."""
        if one.state is State.FAILED:
            self._app.say(f"{one.repo_id}: {one.note}", severity="warning")
            return
        queue = self._opened()
        await detached(lambda: (queue.wait(one.id, 10.0), queue.forget(one.id)))
        self._on_ready()
        if one.state is State.CANCELLED:
            self._app.say(f"The download of {one.repo_id} was cancelled; what it had fetched is removed.")
            return
        host = self._app.host
        if host.model is None or host.state is HostState.FAILED:
            self._app.say(f"{one.repo_id} is whole and verified. Loading it.")
            host.start(await detached(lambda: self._app.shelf.find(one.repo_id)))
        else:
            self._app.say(
                f"{one.repo_id} is whole and verified: F3 or /model {short_name(one.repo_id)} uses it."
            )
