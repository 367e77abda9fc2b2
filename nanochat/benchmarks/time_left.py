"""How long a run still takes, guessed from what it took so far and from how much work is left."""

from __future__ import annotations

from collections.abc import Sequence


class TimeLeft:
    """Knows the least time of each case (its floor); what a case took over its floor is expected of the others too.

    Args:
        floors: seconds of each case on a machine that does all it can; 0 where nothing can be said.
        passes: how often each case is run, warm-ups and engines counted.
    """

    def __init__(self, floors: Sequence[float], passes: int) -> None:
        self._floors, self._passes = tuple(floors), passes
        self._ended = 0
        self._took = self._ideal = 0.0

    def ended(self, seconds: float) -> None:
        """The next case is done, all passes of it, in so many seconds."""
        self._took += seconds
        self._ideal += self._floors[self._ended] * self._passes
        self._ended += 1

    def after(self, seconds_left: float | None) -> float | None:
        """Seconds of the whole run, when the present case needs so many; None as long as nothing is known."""
        if seconds_left is None:
            return None
        rest = sum(self._floors[self._ended + 1 :]) * self._passes
        if rest and not self._ideal:
            return None
        return seconds_left + (rest * self._took / self._ideal if rest else 0.0)
