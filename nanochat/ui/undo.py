"""The deletes of this session, each with how it is undone, the latest first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Undo = Callable[[], Awaitable[None]]


class Deletion:
    """A delete that was asked for. Its block ends when it is done, and how it is undone is known, or when it failed."""

    def __init__(self, steps: list[Deletion]) -> None:
        self._steps = steps
        self._ended = asyncio.Event()
        self.said = ""
        self.undo: Undo | None = None

    def remember(self, said: str, undo: Undo) -> None:
        """Keep how it is undone, and what is said then."""
        self.said, self.undo = said, undo

    async def ended(self) -> None:
        """Wait for its end."""
        await self._ended.wait()

    def __enter__(self) -> Deletion:
        return self

    def __exit__(self, *_: object) -> None:
        if self.undo is None and self in self._steps:
            self._steps.remove(self)
        self._ended.set()


class UndoStack:
    """Kept until nanochat ends; what was deleted itself is kept longer, in the history."""

    def __init__(self) -> None:
        self._steps: list[Deletion] = []

    def begin(self) -> Deletion:
        """A delete is asked for: from now on it is the last one."""
        step = Deletion(self._steps)
        self._steps.append(step)
        return step

    async def last(self) -> str:
        """Undo the last delete, once it is done; returns what is to be said, "" when there was none."""
        if not self._steps:
            return ""
        step = self._steps.pop()
        await step.ended()
        if step.undo is not None:
            await step.undo()
        return step.said
