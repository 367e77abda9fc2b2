"""Signals on an event loop, told through a pipe that outlives it.

asyncio's own way closes what a signal is written to when the loop closes. A handler that another thread is in at that
moment then fails, and Python prints its traceback over the terminal. This pipe is never closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable


def on_signals(loop: asyncio.AbstractEventLoop, numbers: Iterable[int], act: Callable[[int], None]) -> None:
    """Call `act` on the loop, which is the main thread's, for each of these signals that comes.

    When the loop is to end, they become nothing to anybody (`forget_signals`), and what they usually are when it has
    (`give_back_signals`).
    """
    wanted = frozenset(numbers)
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)

    def tell() -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(reading, 256):
                if number in wanted:
                    act(number)

    loop.add_reader(reading, tell)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in wanted:
        signal.signal(number, _nothing)  # the number is written before any of it
        signal.siginterrupt(number, False)


def forget_signals() -> None:
    """From now on they are written nowhere."""
    signal.set_wakeup_fd(-1)


def give_back_signals() -> None:
    """Those that were taken do what they usually do: they end the process."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is _nothing:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _nothing(number: int, frame: object) -> None:
    pass
