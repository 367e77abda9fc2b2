"""How many steps are dispatched beyond the one whose tokens are being read: what keeps the device busy meanwhile.

Enough to cover the longest time for which another thread holds the interpreter's lock, and no more: a new request and a
stop wait for what is queued.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.engine.step import PendingStep

_LEAST, _MOST = 2, 48  # steps; 48 of a small model's are some 30 ms
_QUIET_STEPS = 100


class StepsAhead:
    """Owned by the core.

    Attributes:
        depth: steps in flight besides the one that is read; 0 where the processor itself computes them.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.depth = _LEAST if on_gpu else 0
        self._on_gpu = on_gpu
        self._quiet = 0

    def look(self, in_flight: Sequence[PendingStep]) -> None:
        """Before new steps: go deeper when the device ran dry, since something held the lock; less deep in quiet times."""
        if not self._on_gpu or not in_flight or _reads(in_flight[-1]):
            return  # a prompt's step may take longer to launch than to run
        if in_flight[-1].done():
            self.depth, self._quiet = min(self.depth * 2, _MOST), 0
        elif self._quiet > _QUIET_STEPS:
            self.depth, self._quiet = max(self.depth - self.depth // 8 - 1, _LEAST), 0
        else:
            self._quiet += 1

    def takes(self, in_flight: Sequence[PendingStep]) -> bool:
        """Whether another step may be dispatched. Steps that read a prompt are long: two keep the device busy."""
        if len(in_flight) > self.depth:
            return False
        return not self._on_gpu or sum(map(_reads, in_flight)) < _LEAST


def _reads(step: PendingStep) -> bool:
    """Whether a step computes a prompt's tokens, which come last in it."""
    return step.chunks[-1].count > 1
