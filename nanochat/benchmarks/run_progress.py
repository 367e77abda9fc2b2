"""A run's progress: that of the case at hand, with how long the whole run still takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nanochat.benchmarks.measuring import Progress
from nanochat.benchmarks.time_left import TimeLeft


class RunProgress:
    """Passes on what cases and engines tell of themselves."""

    def __init__(self, left: TimeLeft, on_progress: Callable[[Progress], None]) -> None:
        self._left, self._on_progress = left, on_progress
        self._latest: Progress | None = None

    def tell(self, progress: Progress) -> None:
        """How far the case at hand is."""
        self._latest = replace(progress, run_seconds_left=self._left.after(progress.seconds_left))
        self._on_progress(self._latest)

    def tell_rate(self, rate: float) -> None:
        """Tokens a second of the engine at work, where it is known what it works at."""
        if self._latest is not None:
            self._on_progress(replace(self._latest, rate=rate))
