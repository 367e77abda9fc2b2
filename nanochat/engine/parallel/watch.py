"""How a lost rank is found out: the looks that rank 0's watch takes at all ranks, several times a second.

Lost is

    a worker that gives no sign of life                 (its process was stopped, or hangs in a call that holds Python)
    a rank that has work and comes no further with it   (it hangs, asleep or computing: see `standstill.py`)
    a worker that waits for others while they wait      (it left out a collective)

Each ends an engine within 10 s (the last one where pieces are short), but for calls that are given longer, by name or by
their size (`kernels/headway.py`: reading a mebibyte from a disk that does not answer takes two minutes). Rank 0 shares its
process with the watch: in a call that hangs and holds Python it stops the watch too, and nobody finds out.

How long a load or a step takes is up to the machine: no time is too long as long as pieces of work get done. What counts
is looks, not seconds: while all processes were asleep, or the program was stopped, nobody is to blame. A rank that waits
for another one never is.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from nanochat.engine.host import progress, thread_progress
from nanochat.engine.parallel.channel import SharedMemory
from nanochat.engine.parallel.own_work import OwnWork
from nanochat.engine.parallel.standstill import POLL, Standstill


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a rank counts as lost.

    Args:
        silence: looks without a sign of life.
        still: looks in which a rank that has work comes no further, while it computes or sleeps.
        unmoved: the same, while it waits for a disk as well.
        stall: looks in which all ranks wait for each other, and `patience` times the most in which rank 0 came no
            further before.
    """

    silence: int = 35  # 7 s
    still: int = 36
    unmoved: int = 600  # 2 minutes
    stall: int = 40
    patience: float = 4.0


class Stage(IntEnum):
    """How far a worker is: how many words it has said."""

    STARTING = 0
    LOADING = 1
    GETTING_READY = 2
    READY = 3

    def __str__(self) -> str:
        return ("starting", "loading its weights", "getting ready", "in a step")[self]


@dataclass(slots=True)
class Standing:
    """What rank 0 knows of a rank."""

    pid: int
    stage: Stage = Stage.STARTING


Lost = tuple[int, str]
"""(rank, what it did or did not do)."""


class Watch:
    """All looks in one.

    Args:
        ranks: rank 0's standing first.
    """

    def __init__(self, memory: SharedMemory, ranks: list[Standing], own: OwnWork, bounds: Bounds) -> None:
        self._ranks, self._own = ranks, own
        self._silence = Silence(memory, ranks[1:], bounds)
        pulses = [memory.pulse(rank) for rank in range(len(ranks))]
        self._first = pulses[0]
        self._standstills = [Standstill(pulse, bounds.still, bounds.unmoved) for pulse in pulses]
        self._deadlock = Deadlock(memory, len(ranks), bounds)
        self._last = time.monotonic()

    def look(self, busy: bool) -> Lost | None:
        """Who is lost, if anybody is; `busy` is whether rank 0 loads or is in a step, and so expected in collectives."""
        now = time.monotonic()
        if now - self._last < POLL / 2:
            return None
        self._last = now
        return self._silence.look() or self._still() or self._deadlock.look(busy)

    def _still(self) -> Lost | None:
        thread = self._own.thread
        if (
            self._ranks[0].stage is not Stage.READY
        ):  # importing is headway; later others in this process may do it
            self._first.beat(len(sys.modules))
        for rank, (standing, standstill) in enumerate(zip(self._ranks, self._standstills, strict=True)):
            if rank == 0 and thread is None:
                standstill.rest()
                continue
            effort = partial(progress, standing.pid) if rank else partial(thread_progress, thread or 0)
            how = standstill.look(effort)
            if how is not None:
                return rank, f"{how} while {standing.stage}"
        return None


class Silence:
    """Which worker has given no sign of life.

    A worker that starts imports for seconds in which none of its threads can beat, so until it says that it has
    started, what counts is that its process works (`Standstill`).
    """

    def __init__(self, memory: SharedMemory, workers: list[Standing], bounds: Bounds) -> None:
        self._workers, self._bound = workers, bounds.silence
        self._pulses = [memory.pulse(rank) for rank in range(1, len(workers) + 1)]
        self._beats = [-1] * len(workers)
        self._looks = [0] * len(workers)

    def look(self) -> Lost | None:
        """A silent worker."""
        for place, (worker, pulse) in enumerate(zip(self._workers, self._pulses, strict=True)):
            beats = pulse.beats
            alive = beats != self._beats[place] or worker.stage is Stage.STARTING
            self._beats[place] = beats
            self._looks[place] = 0 if alive else self._looks[place] + 1
            if self._looks[place] >= self._bound:
                return place + 1, f"gave no sign of life for {self._bound * POLL:.0f} s"
        return None


class Deadlock:
    """Whether all ranks wait for each other, and which is behind.

    A device's work is waited for like a rank, so that what counts is also how long rank 0 came no further before.
    """

    def __init__(self, memory: SharedMemory, ranks: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._pulses = [memory.pulse(rank) for rank in range(ranks)]
        self._seen: list[tuple[int, ...]] = []
        self._looks = self._longest = 0

    def look(self, busy: bool) -> Lost | None:
        """The rank that is behind."""
        allowed = max(pulse.allowed for pulse in self._pulses) / POLL  # first: it is part of `far`
        seen = [pulse.far for pulse in self._pulses]
        if not busy or seen != self._seen:
            if busy:
                self._longest = max(self._longest, self._looks)
            self._seen, self._looks = seen, 0
            return None
        self._looks += 1
        bound = self._bounds.stall + self._bounds.patience * self._longest + allowed
        if self._looks < bound or not all(pulse.waiting for pulse in self._pulses):
            return None
        behind = min(range(1, len(seen)), key=lambda rank: seen[rank])
        return behind, f"did not come to a collective for {self._looks * POLL:.0f} s"
