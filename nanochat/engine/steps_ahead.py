"""How many steps are dispatched beyond the one whose tokens are being read: what keeps the device busy meanwhile.

Enough to cover the longest time for which another thread held the interpreter's lock of late, and no more: a new
request and a stop wait for what is queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil

from nanochat.engine.step import PendingStep

_LEAST, _MOST = 2, 48  # steps; 48 of a small model's are some 30 ms
_MARGIN = 1.25
_HALF_LIFE = 1.0  # seconds: so fast a hold is forgotten that does not come again
_FIRST_WINDOW, _WINDOW = 16, 64  # steps whose time is taken together


class StepsAhead:
    """Owned by the core.

    Attributes:
        depth: steps in flight besides the one that is read; 0 where the processor itself computes them.
    """

    def __init__(self, on_gpu: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock`: seconds, only forward."""
        self.depth = _LEAST if on_gpu else 0
        self._on_gpu = on_gpu
        self._clock = clock
        self._held = 0.0  # the longest time between two looks, as far as it is remembered
        self._step = 0.0  # seconds of a decode step, 0 as long as they are unknown
        self._last: float | None = None
        self._window: tuple[float, int] = (0.0, 0)  # when it began, and looks since
        self._bound = False  # whether a reply that waits for its tokens was in flight since the last look

    def look(self, in_flight: Sequence[PendingStep]) -> None:
        """Before new steps: go as deep as the longest hold asks for, and deeper when the device ran dry."""
        if not self._on_gpu:
            return
        bound, self._bound = self._bound, False
        # A prompt's step may take longer to launch than to run; beside a reply that counts its tokens the device runs dry
        # because `takes` let no more be queued, and bending its logits is no hold.
        if not in_flight or _reads(in_flight[-1]) or bound or _counts(in_flight[-1]):
            self.rest()
            return
        now, last = self._clock(), self._last
        self._last = now
        if last is None:
            self._window = (now, 0)
            return
        self._time(now)
        gap = now - last
        self._held = max(gap, self._held * 0.5 ** (gap / _HALF_LIFE))
        wanted = ceil(_MARGIN * self._held / self._step) + 1 if self._step else self.depth
        if in_flight[-1].done():
            wanted = max(wanted, self.depth * 2)
            self._held = max(self._held, (wanted - 1) * self._step / _MARGIN)
        self.depth = min(max(wanted, _LEAST), _MOST)

    def rest(self) -> None:
        """What goes by from here to the next look is no hold."""
        self._last = None

    def takes(self, in_flight: Sequence[PendingStep]) -> bool:
        """Whether another step may be dispatched. Steps that read a prompt are long: two keep the device busy.

        A reply that waits for its token to be read waits for one step of others at most, not for all that may be queued.
        """
        counted = bool(in_flight) and (_counts(in_flight[0]) or _counts(in_flight[-1]))
        self._bound |= counted
        if len(in_flight) > (min(self.depth, 1) if counted else self.depth):
            return False
        return not self._on_gpu or sum(map(_reads, in_flight)) < _LEAST

    def _time(self, now: float) -> None:
        began, looks = self._window
        if looks + 1 < (_WINDOW if self._step else _FIRST_WINDOW):
            self._window = (began, looks + 1)
            return
        self._step = (now - began) / (looks + 1)
        self._window = (now, 0)


def _counts(step: PendingStep) -> bool:
    """Whether a reply of a step goes on only when its token was read."""
    return any(chunk.sequence.needs_history for chunk in step.chunks)


def _reads(step: PendingStep) -> bool:
    """Whether a step computes a prompt's tokens, which come last in it."""
    return step.chunks[-1].count > 1
