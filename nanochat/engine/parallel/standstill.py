"""Whether a rank comes further with its own work: what tells one that hangs from one that is slow.

What counts is looks since the last piece of work (`kernels/headway.py`) in which the rank neither waits for others nor
for a disk. And in half of that time it must really have computed or slept: a rank that gets no processor, because the
machine is busy, or that finds its memory swapped out, does its pieces late and is not to blame. A piece that takes 3 s of
a processor's time is none too long, however busy the machine.
"""

from __future__ import annotations

from collections.abc import Callable

from nanochat.engine.host import Progress
from nanochat.engine.parallel.channel import Pulse

POLL = 0.2  # seconds between two looks
_SHARE = 0.5  # of the time without headway in which it must have computed or slept
_IDLE = 0.02  # who computes for less of its time does nothing: signs of life take that


class Standstill:
    """One rank's.

    Args:
        still: looks without headway, while it is known to work or to sleep.
        unmoved: the same, while it waits for a disk as well.
    """

    def __init__(self, pulse: Pulse, still: int, unmoved: int) -> None:
        self._pulse = pulse
        self._still, self._unmoved = still, unmoved
        self._seen: tuple[int, ...] = ()
        self.rest()

    def look(self, effort: Callable[[], Progress | None]) -> str | None:
        """What it did or did not do, when it is lost. `effort`: what its process does; None when that is gone."""
        seen = self._pulse.far
        if seen != self._seen or self._pulse.waiting:
            self._seen = seen
            self.rest()
            return None
        found = effort()
        if found is None:
            return None  # its socket tells how it ended
        self._all += 1
        if not found.waits:
            self._count(found)
        allowed = self._pulse.allowed
        if self._pulse.far != seen:  # during this look: what it is allowed may be that of its next call
            return None
        bound = self._still + allowed / POLL
        if self._looks >= bound and self._worked >= self._still * POLL * _SHARE + allowed:
            return self._in_words(self._looks)
        return self._in_words(self._all) if self._all >= max(self._unmoved, bound) else None

    def _count(self, found: Progress) -> None:
        before, self._seconds = self._seconds, found.seconds
        computed = 0.0 if before is None else min(found.seconds - before, POLL)
        self._looks += 1
        self._computed += computed
        self._worked += computed if found.busy else POLL

    def _in_words(self, looks: int) -> str:
        what = "did nothing" if self._computed < _IDLE * looks * POLL else "came no further"
        return f"{what} for {looks * POLL:.0f} s"

    def rest(self) -> None:
        """It has no work: begin to count anew."""
        self._all = self._looks = 0
        self._computed = self._worked = 0.0
        self._seconds: float | None = None
