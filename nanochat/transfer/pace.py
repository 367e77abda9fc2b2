"""How fast bytes come: the speed over the last ten seconds, and the time that is left at it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW = 10.0


@dataclass
class Pace:
    """Readings of a counter that only grows; times in seconds, of any one clock."""

    window: float = WINDOW
    _readings: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def add(self, now: float, received: int) -> None:
        """The counter stood at `received`."""
        self._readings.append((now, received))
        # One reading from before the window stays: the span then is the whole window.
        while len(self._readings) > 2 and self._readings[1][0] <= now - self.window:
            self._readings.popleft()

    def speed(self, now: float) -> float | None:
        """Bytes per second; None before there is a second reading."""
        if len(self._readings) < 2:
            return None
        first = self._readings[0]
        span = now - first[0]
        return (self._readings[-1][1] - first[1]) / span if span > 0 else None

    def seconds_left(self, now: float, missing: int) -> float | None:
        """Time for `missing` bytes at that speed; None when nothing moves."""
        speed = self.speed(now)
        return missing / speed if speed else None
