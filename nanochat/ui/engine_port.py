"""The engine as the application sees it: what it calls, and nothing more. `EngineService` is it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import EngineStats
from nanochat.engine.request import Request
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError


class LoadHandle(Protocol):
    """A load under way, as `EngineService.load` gives it."""

    @property
    def progress(self) -> tuple[float, str]:
        """(fraction, what is being done)."""
        ...

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of weights: (in place, in all); (0, 0) before they are read."""
        ...

    @property
    def done(self) -> bool:
        """Whether it ended."""
        ...

    @property
    def error(self) -> NanochatError | None:
        """Why it failed."""
        ...


class Engine(Protocol):
    """What the application needs of `EngineService`."""

    def load(self, config: EngineConfig) -> LoadHandle:
        """Start loading; returns at once."""
        ...

    def unload(self) -> None:
        """Give the memory back."""
        ...

    def close(self, timeout: float = 10.0) -> None:
        """End the engine's thread; does not wait for longer than `timeout` seconds."""
        ...

    def submit(self, request: Request, on_ready: Callable[[], None] | None = None) -> Stream:
        """Queue a request."""
        ...

    def set_priority(self, request_id: str, priority: int) -> None:
        """Change who goes first."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot."""
        ...
