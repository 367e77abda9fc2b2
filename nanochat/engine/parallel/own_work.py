"""What rank 0 does itself, in a thread of the program's: watched like the other ranks, and called off like nothing else.

The other ranks are processes, which can be killed. A thread cannot: an exception is thrown into it, which it meets as
soon as it runs Python again. One that hangs for ever in a library's call does not: a service leaves it behind, with what
it holds; a program that called the engine itself goes on hanging. And nothing helps against a call that hangs and holds
Python's lock: no thread of this process runs then, the watch neither.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Generator
from contextlib import contextmanager

from nanochat.engine.parallel.channel import Pulse
from nanochat.errors import EngineDead
from nanochat.kernels.headway import witnessed


class CalledOff(EngineDead):
    """Thrown into rank 0's thread when it hangs; whoever catches it tells the reason that the group keeps."""

    def __init__(self) -> None:
        super().__init__("rank 0 came no further")


class OwnWork:
    """Owned by the group. Entered by the thread that works, called off by the watch.

    Attributes:
        thread: the native id of the thread that is in it; None when nobody is.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._lock = threading.Lock()
        self._ident = 0
        self._called_off = False
        self._left = threading.Event()
        self.thread: int | None = None

    @contextmanager
    def going_on(self) -> Generator[None]:
        """Inside it, this thread does rank 0's work. May raise CalledOff anywhere in it."""
        with self._lock:
            self._left.clear()
            self._ident, self.thread = threading.get_ident(), threading.get_native_id()
        try:
            with witnessed(self._pulse):
                yield
        finally:
            with self._lock:
                self.thread = None
                self._left.set()
                if self._called_off:  # what did not arrive in here must not do so elsewhere
                    _take_back(self._ident)

    def has_ended(self, seconds: float) -> bool:
        """Whether the thread leaves it within so long."""
        return self._left.wait(seconds)

    def call_off(self) -> None:
        """Throw CalledOff into the thread that is in it, once."""
        with self._lock:
            if self.thread is not None and not self._called_off:
                self._called_off = True
                _throw(self._ident, CalledOff)


class _TakenBack(BaseException):
    """Thrown by a thread into itself, in the place of what has not arrived."""


def _take_back(ident: int) -> None:
    """What was thrown into this thread arrives no more.

    Not by throwing nothing, though Python has that: Python 3.11 then looks for what was thrown at every step from then on,
    and under a profiler or a tracer for ever before the first step of the next function.
    """
    try:
        _throw(ident, _TakenBack)
        while True:  # it arrives at the latest here
            pass
    except _TakenBack:
        pass


def _throw(ident: int, kind: type[BaseException]) -> None:
    """Raise an exception in another thread. The last one thrown counts, as long as none has arrived."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))
