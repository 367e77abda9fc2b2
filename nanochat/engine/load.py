"""A load as those see it who wait for it."""

from __future__ import annotations

import threading

from nanochat.engine.config import EngineConfig
from nanochat.errors import NanochatError


class Load:
    """A load under way: how far it is, and how it ended."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.error: NanochatError | None = None
        self._done = threading.Event()
        self._progress: tuple[float, str] = (0.0, "importing torch")
        self.bytes: tuple[int, int] = (0, 0)  # of weights: in place, in all

    @property
    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self._done.is_set()

    @property
    def progress(self) -> tuple[float, str]:
        """(fraction from 0 to 1, what is being done)."""
        return self._progress

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises:
            TimeoutError: it takes longer than `timeout` seconds.
            NanochatError: the load failed.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"loading {self.config.name} takes longer than {timeout} s")
        if self.error is not None:
            raise self.error

    def report(self, done: int, total: int) -> None:
        """Called by the engine's thread: `done` of `total` bytes of weights are in place."""
        self.bytes = (done, total)
        self._progress = (done / total if total else 0.0, "reading weights")

    def finish(self, error: NanochatError | None) -> None:
        """Called by the engine's thread. The first end counts: one that hung and was left behind may wake."""
        if self.done:
            return
        self.error = error
        self._progress = (1.0, "ready" if error is None else "failed")
        self._done.set()
