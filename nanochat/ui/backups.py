"""Copies of the history, a week apart, made while no reply is on its way: what `nanochat chats set-aside --restore` goes on from."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from nanochat.errors import HistoryError

if TYPE_CHECKING:
    from nanochat.history import History

log = logging.getLogger("nanochat.desk")

FIRST_SECONDS = 60.0  # after the chats were opened
NEXT_SECONDS = 3600.0  # between two looks at whether one is due


class Backups:
    """Belongs to the screen's thread."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._next = monotonic() + FIRST_SECONDS

    async def look(self, *, busy: bool) -> None:
        """Make one if it is time. A disk that does not take it is no reason to disturb anybody."""
        if busy or monotonic() < self._next:
            return
        self._next = monotonic() + NEXT_SECONDS
        try:
            made = await asyncio.to_thread(self._history.backup_if_due)
        except HistoryError as error:
            log.warning("no backup of the chats could be made: %s", error)
            return
        if made is not None:
            log.info("the chats were copied to %s", made)
