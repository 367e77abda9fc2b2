"""What is typed while a reply streams: it waits unseen for the next prompt, and a paste stays in its brackets."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

_BRACKETS_ON, _BRACKETS_OFF = b"\x1b[?2004h", b"\x1b[?2004l"
_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)


@contextmanager
def kept_for_the_prompt() -> Generator[None]:
    """For the block the terminal neither shows what is typed nor cuts it into lines; a paste comes in brackets.

    Readline finds it all at its next prompt, and reads a paste between brackets as one text. Between two prompts the
    terminal would send it without them, and hand it on line by line. Ctrl-C stays what it is; who is killed or stopped
    gives the terminal back first.
    """
    before = termios.tcgetattr(0)
    quiet = [*before]
    quiet[3] &= ~(termios.ICANON | termios.ECHO)

    def give_back(number: int, frame: FrameType | None) -> None:
        _set(before, _BRACKETS_OFF)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, give_back)  # it was stopped, and goes on
        _set(quiet, _BRACKETS_ON)

    ours = [number for number in _ENDS if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, give_back)
    _set(quiet, _BRACKETS_ON)
    try:
        yield
    finally:
        _set(before, _BRACKETS_OFF)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def is_terminal() -> bool:
    """Whether input and output are the terminal that readline edits lines in."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _set(attributes: list[int | list[bytes | int]], brackets: bytes) -> None:
    with suppress(OSError, termios.error):  # it may have hung up
        termios.tcsetattr(0, termios.TCSADRAIN, attributes)
        os.write(1, brackets)  # not through a stream: a signal may come while that writes
