"""A device that is behind: its steps are done when they are read, not before, as they are on a GPU with a long queue."""

from __future__ import annotations

from typing import Any

from nanochat.engine.core import EngineCore
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import PendingStep, Token


class LaggingStep:
    def __init__(self, step: PendingStep) -> None:
        self.chunks = step.chunks
        self._step = step

    def done(self) -> bool:
        return False

    def read(self) -> tuple[list[bool], list[Token]]:
        return self._step.read()


class LaggingDevice:
    """A runner around another one."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def dispatch(self, chunks: list[Chunk]) -> LaggingStep:
        return LaggingStep(self._runner.dispatch(chunks))


def lag(core: EngineCore, ahead: int) -> None:
    """Let `core` queue `ahead` steps beyond the one that it reads."""
    core._ahead.depth = ahead
    core._runner = LaggingDevice(core._runner)  # type: ignore[assignment]
