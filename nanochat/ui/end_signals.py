"""The signals from outside that save and end the application: SIGTERM, SIGHUP and SIGINT; one is enough."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nanochat.ui.signals import on_signals

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

log = logging.getLogger("nanochat.end_signals")


class EndSignals:
    """Belongs to the screen's thread."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._came = self._is_lent = False

    def listen(self) -> None:
        """End the application from now on, when one comes."""
        if threading.current_thread() is threading.main_thread() and not self._app.is_headless:
            on_signals(asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGHUP, signal.SIGINT), self._end)

    @contextmanager
    def lent(self) -> Generator[None]:
        """Another program has the terminal for the block: Ctrl+C there, which comes to us as well, is meant for it."""
        self._is_lent = True
        try:
            yield
        finally:
            self._is_lent = False

    def _end(self, number: int) -> None:
        if self._came or self._app.desk.is_closing or not self._app.is_running:
            return
        if number == signal.SIGINT and self._is_lent:
            return
        self._came = True
        log.info("ending on signal %s", signal.Signals(number).name)
        self._app.attempt(self._app.lifetime.end(ask=False))
