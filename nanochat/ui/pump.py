"""The bell between the engine and the screen: many rings, one look, never more often than the screen can draw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

FASTEST, SLOWEST = 0.05, 0.25  # seconds between two looks


class Pump:
    """Calls `look` in the event loop after a ring. `painted` returns when what it changed has been drawn.

    The next look comes twice the time later that this one and its drawing took: the screen never takes more than
    half of the event loop, whatever the terminal.
    """

    def __init__(self, look: Callable[[], None], painted: Callable[[], Awaitable[None]]) -> None:
        self._look, self._painted = look, painted
        self._rung = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pending = False

    def ring(self) -> None:
        """Text has come. Any thread may call; only the first ring since the last look wakes the loop."""
        if not self._pending:
            self._pending = True
            try:
                self._loop.call_soon_threadsafe(self._rung.set)
            except RuntimeError:  # the loop has ended: nobody looks any more
                return

    async def run(self) -> None:
        """Look after every ring, until cancelled."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            self._pending = False
            started = monotonic()
            self._look()
            await self._painted()
            await asyncio.sleep(min(max(2 * (monotonic() - started), FASTEST), SLOWEST))
