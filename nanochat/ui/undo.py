"""The deletes of this session, each with how it is undone, the latest first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Undo = Callable[[], Awaitable[None]]


class UndoStack:
    """Kept until nanochat ends; what was deleted itself is kept longer, in the history."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Undo]] = []

    def remember(self, said: str, undo: Undo) -> None:
        """Keep how a delete is undone, and what is said then."""
        self._steps.append((said, undo))

    async def last(self) -> str:
        """Undo the last delete; returns what is to be said, "" when there was none."""
        if not self._steps:
            return ""
        said, undo = self._steps.pop()
        await undo()
        return said
