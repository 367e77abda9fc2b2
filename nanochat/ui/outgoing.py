"""What was sent with Enter and is on its way: neither in the history nor back in the prompt yet."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from nanochat.ui.draft import Draft


class Outgoing:
    """The messages of one chat that are being sent."""

    def __init__(self) -> None:
        self._drafts: list[Draft] = []
        self._settled = asyncio.Event()
        self._settled.set()

    def __bool__(self) -> bool:
        return bool(self._drafts)

    @property
    def texts(self) -> list[str]:
        """They are still unsent, should nanochat end now."""
        return [draft.full for draft in self._drafts]

    def add(self, draft: Draft) -> None:
        """Enter was pressed; `settling` must follow."""
        self._drafts.append(draft)
        self._settled.clear()

    @contextmanager
    def settling(self, draft: Draft) -> Generator[None]:
        """At the end it is in the history, or was given back."""
        try:
            yield
        finally:
            self._drafts[:] = [each for each in self._drafts if each is not draft]
            if not self._drafts:
                self._settled.set()

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        await self._settled.wait()
