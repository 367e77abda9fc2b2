"""How a lost rank is found out: the looks that rank 0's watch takes at the workers, several times a second.

A worker is lost when it

    gives no sign of life                                  (its process was stopped, or hangs in a call that holds Python)
    owes rank 0 a word and neither computes nor waits for a disk   (it starts, loads or gets ready, and hangs)
    owes rank 0 a word while no rank comes any further     (it waits for a disk that gives nothing, or computes for ever)
    does not come to a collective in which rank 0 waits    (it hangs in a step)

The first two and, where steps are short, the last end an engine within 10 s. How long it takes to load is up to the
disk: there no time is too long as long as weights arrive, and two minutes in which nothing does are. What counts is
looks, not seconds: while all processes were asleep, nobody is to blame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum

from nanochat.engine.host import Progress, progress
from nanochat.engine.parallel.channel import Pulse, SharedMemory

POLL = 0.2  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a rank counts as lost.

    Args:
        silence: looks without a sign of life.
        idle: looks in which a worker that owes a word does nothing.
        unmoved: looks in which no rank comes any further.
        stall: seconds that a rank may be late in a collective, and `patience` times the longest that rank 0 computed
            between two of them.
    """

    silence: int = 35  # 7 s
    idle: int = 40  # 8 s
    unmoved: int = 600  # 2 minutes
    stall: float = 8.0
    patience: float = 4.0


class Stage(IntEnum):
    """How far a worker is: how many words it has said."""

    STARTING = 0
    LOADING = 1
    GETTING_READY = 2
    READY = 3

    def __str__(self) -> str:
        return ("starting", "loading its weights", "getting ready", "ready")[self]


@dataclass(slots=True)
class Standing:
    """What rank 0 knows of a worker: how far it is, and whether it was asked for more."""

    pid: int
    stage: Stage = Stage.STARTING
    owes: bool = True


Lost = tuple[int, str]
"""(rank, what it did or did not do)."""


class Watch:
    """All looks in one."""

    def __init__(self, memory: SharedMemory, workers: list[Standing], bounds: Bounds) -> None:
        self._silence = Silence(memory, workers, bounds)
        self._idle = Idle(memory, workers, bounds)
        self._unmoved = Unmoved(memory, workers, bounds)
        self._stall = Stall(memory, len(workers) + 1, bounds)
        self._last = time.monotonic()

    def look(self, busy: bool) -> Lost | None:
        """Who is lost, if anybody is; `busy` is whether rank 0 is in a step, and so expected in collectives."""
        now = time.monotonic()
        if now - self._last >= POLL / 2:
            self._last = now
            lost = self._silence.look() or self._idle.look() or self._unmoved.look()
            if lost is not None:
                return lost
        return self._stall.look(busy)


class Silence:
    """Which worker has given no sign of life.

    A worker that starts imports for seconds in which none of its threads can beat, so until it says that it has
    started, what counts is that its process works (`Idle`).
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


class Idle:
    """Which worker owes a word and does nothing for it. Who waits in a collective is not to blame."""

    _TRIFLE = 0.05  # seconds: more than the signs of life take in so long

    def __init__(self, memory: SharedMemory, workers: list[Standing], bounds: Bounds) -> None:
        self._workers, self._bound = workers, bounds.idle
        self._pulses = [memory.pulse(rank) for rank in range(1, len(workers) + 1)]
        self._seconds = [0.0] * len(workers)
        self._looks = [0] * len(workers)

    def look(self) -> Lost | None:
        """An idle worker."""
        for place, (worker, pulse) in enumerate(zip(self._workers, self._pulses, strict=True)):
            if not worker.owes or pulse.waiting or self._works(place, progress(worker.pid)):
                self._looks[place] = 0
                continue
            self._looks[place] += 1
            if self._looks[place] >= self._bound:
                return place + 1, f"did nothing for {self._bound * POLL:.0f} s while {worker.stage}"
        return None

    def _works(self, place: int, found: Progress | None) -> bool:
        if found is None:
            return True  # it is gone: its socket tells how
        if found.busy or found.seconds > self._seconds[place] + self._TRIFLE:
            self._seconds[place] = found.seconds
            return True
        return False


class Unmoved:
    """Whether any rank comes further while a worker owes a word.

    Ranks wait for each other in places that nobody outside sees, so one that moves excuses all.
    """

    def __init__(self, memory: SharedMemory, workers: list[Standing], bounds: Bounds) -> None:
        self._workers, self._bound = workers, bounds.unmoved
        self._pulses = [memory.pulse(rank) for rank in range(len(workers) + 1)]
        self._seen: list[tuple[object, ...]] = []
        self._looks = 0

    def look(self) -> Lost | None:
        """The worker that is furthest behind, where nothing moves."""
        seen: list[tuple[object, ...]] = [(pulse.advances, pulse.count) for pulse in self._pulses]
        seen += [(worker.stage, worker.owes) for worker in self._workers]
        moved, self._seen = seen != self._seen, seen
        owing = [place for place, worker in enumerate(self._workers) if worker.owes]
        self._looks = 0 if moved or not owing else self._looks + 1
        if self._looks < self._bound:
            return None
        behind = min(owing, key=lambda place: self._how_far(self._workers[place], self._pulses[place + 1]))
        stage = self._workers[behind].stage
        return behind + 1, f"came no further for {self._bound * POLL:.0f} s while {stage}"

    @staticmethod
    def _how_far(worker: Standing, pulse: Pulse) -> tuple[int, int, int]:
        return worker.stage, pulse.count, pulse.advances


class Stall:
    """Which worker keeps rank 0 waiting in a collective for longer than computing can take."""

    def __init__(self, memory: SharedMemory, ranks: int, bounds: Bounds) -> None:
        self._bounds = bounds
        self._pulses = [memory.pulse(rank) for rank in range(ranks)]
        self._seen = (-1, False)
        self._since = time.monotonic()
        self._longest = 0.0

    def look(self, busy: bool) -> Lost | None:
        """The rank that is behind."""
        now, seen = time.monotonic(), (self._pulses[0].count, self._pulses[0].waiting)
        passed = now - self._since
        if seen != self._seen or not busy:
            if busy and not self._seen[1]:
                self._longest = max(self._longest, passed)
            self._seen, self._since = seen, now
        elif seen[1] and passed > self._bounds.stall + self._bounds.patience * self._longest:
            counts = [pulse.count for pulse in self._pulses[1:]]
            return 1 + counts.index(min(counts)), f"did not come to a collective for {passed:.0f} s"
        return None
