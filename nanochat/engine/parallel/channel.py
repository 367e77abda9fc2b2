"""Memory that the ranks share: the steps that rank 0 hands out, and each rank's signs of life.

The memory has no name: it is a file descriptor that the workers inherit, and is gone with the last process that has
it. Its layout, in 64-bit words:

    PULSE_WORDS for each rank: heartbeat, collectives done, whether and for what it waits, parts taken, pieces of work
    done, seconds that the call under way may take longer than a piece, modules imported
    SLOTS slots of PART_BYTES: length of the part in bytes, 1 if it is the message's last, the part

A message of rank 0's is written part by part into the slots in turn; a slot is used again when every worker has taken
its part. A byte through each worker's socket says that a part is there.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

SLOTS = 8
PART_BYTES = 2**18
_PULSE_WORDS = 8
_HEAD = 16  # bytes before a part
_HEARTBEAT, _COUNT, _WAITING, _TAKEN, _ADVANCES, _ALLOWED, _MODULES = range(7)
_COLLECTIVE, _NEWS = 1, 2  # what is waited for


class SharedMemory:
    """The memory, as words and as bytes."""

    def __init__(self, descriptor: int, ranks: int) -> None:
        self._map = mmap.mmap(descriptor, _size(ranks))
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("q")
        self._ranks = ranks

    def pulse(self, rank: int) -> Pulse:
        """The words of one rank."""
        return Pulse(self, rank)

    def slot(self, part: int) -> int:
        """Where the slot of the part with this number begins, in bytes."""
        return self._ranks * _PULSE_WORDS * 8 + part % SLOTS * (_HEAD + PART_BYTES)


class Pulse:
    """One rank's signs of life and of headway (it is a `Witness`). Written by that rank; anybody reads."""

    def __init__(self, memory: SharedMemory, rank: int) -> None:
        self._words = memory.words
        self._at = rank * _PULSE_WORDS

    def beat(self, modules: int) -> None:
        """The process lives, and has imported so many modules."""
        self._words[self._at + _MODULES] = modules
        self._words[self._at + _HEARTBEAT] += 1

    def enter(self) -> None:
        """A collective begins."""
        self._words[self._at + _WAITING] = _COLLECTIVE

    def leave(self) -> None:
        """A collective is done."""
        self._words[self._at + _COUNT] += 1
        self._words[self._at + _WAITING] = 0

    @contextmanager
    def collective(self) -> Generator[None]:
        """Inside it, the other ranks are waited for."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def news(self) -> Generator[None]:
        """Inside it, a word of another rank's is waited for."""
        self._words[self._at + _WAITING] = _NEWS
        try:
            yield
        finally:
            self._words[self._at + _WAITING] = 0

    def take(self) -> None:
        """A part was read."""
        self._words[self._at + _TAKEN] += 1

    def advance(self) -> None:
        """A piece of work is done."""
        self._words[self._at + _ADVANCES] += 1

    @property
    def allowed(self) -> int:
        """Seconds that the call under way may take longer than a piece of work."""
        return self._words[self._at + _ALLOWED]

    @allowed.setter
    def allowed(self, seconds: int) -> None:
        self._words[self._at + _ALLOWED] = seconds

    @property
    def beats(self) -> int:
        """How often the process said that it lives."""
        return self._words[self._at + _HEARTBEAT]

    @property
    def waiting(self) -> bool:
        """Whether it waits for other ranks."""
        return bool(self._words[self._at + _WAITING])

    @property
    def taken(self) -> int:
        """Parts read."""
        return self._words[self._at + _TAKEN]

    @property
    def far(self) -> tuple[int, ...]:
        """How far it is: collectives done, parts taken, pieces of work done, modules imported, and what it does."""
        return tuple(
            self._words[self._at + at] for at in (_COUNT, _TAKEN, _ADVANCES, _MODULES, _WAITING, _ALLOWED)
        )


class Sender:
    """Rank 0's end: hands a message to every worker.

    Args:
        check: called while a slot is waited for; raises when a worker is lost.
    """

    def __init__(
        self, memory: SharedMemory, doorbells: list[socket.socket], check: Callable[[], None]
    ) -> None:
        self._memory = memory
        self._doorbells = doorbells
        self._pulse = memory.pulse(0)
        self._workers = [memory.pulse(rank) for rank in range(1, len(doorbells) + 1)]
        self._check = check
        self._sent = 0

    def send(self, message: bytes) -> None:
        """Hand over a message. Waits only when the workers are SLOTS parts behind."""
        view = memoryview(message)
        for start in range(0, max(len(view), 1), PART_BYTES):
            part = view[start : start + PART_BYTES]
            self._wait_for_room()
            at = self._memory.slot(self._sent)
            head = memoryview(self._memory.bytes[at : at + _HEAD]).cast("q")
            head[0], head[1] = len(part), start + PART_BYTES >= len(view)
            self._memory.bytes[at + _HEAD : at + _HEAD + len(part)] = part
            self._sent += 1
            for bell in self._doorbells:
                bell.sendall(b"\1")

    def _wait_for_room(self) -> None:
        if self._is_full():
            with self._pulse.news():
                while self._is_full():
                    self._check()
                    time.sleep(0.0002)

    def _is_full(self) -> bool:
        return self._sent - min(pulse.taken for pulse in self._workers) >= SLOTS


class Receiver:
    """A worker's end."""

    def __init__(self, memory: SharedMemory, rank: int, doorbell: socket.socket) -> None:
        self._memory = memory
        self._pulse = memory.pulse(rank)
        self._doorbell = doorbell
        self._received = 0

    def receive(self) -> bytes | None:
        """Wait for the next message; None when rank 0 is gone or has closed."""
        parts: list[bytes] = []
        while True:
            with self._pulse.news():
                if not self._doorbell.recv(1):
                    return None
            at = self._memory.slot(self._received)
            length, last = memoryview(self._memory.bytes[at : at + _HEAD]).cast("q")
            parts.append(bytes(self._memory.bytes[at + _HEAD : at + _HEAD + length]))
            self._received += 1
            self._pulse.take()
            if last:
                return b"".join(parts)


def allocate(ranks: int) -> int:
    """A file descriptor of zeroed memory for so many ranks, without a name in any file system."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("nanochat-ranks")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _size(ranks))
    return descriptor


def _size(ranks: int) -> int:
    return ranks * _PULSE_WORDS * 8 + SLOTS * (_HEAD + PART_BYTES)
