"""The standard streams of a command: one that is missing is a file that nobody reads, one that fails says so by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from nanochat.errors import OutputFailed

_NAMES = ("stdin", "stdout", "stderr")


class GuardedStream:
    """A text stream to write to; its failures are told from those of any other file."""

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None], *, pipes: bool = False) -> None:
        """`failed` is called with what the first write or flush to fail ended in, by that one and all that follow; but with
        `pipes` a broken pipe is raised as it is."""
        self._stream, self._failed, self._pipes = stream, failed, pipes
        self._lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`, as a file does."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is held back, as a file does."""
        self._do(self._stream.flush)

    def _do(self, act: Callable[[], object]) -> None:
        if self._lost is None:
            try:
                act()
                return
            except OSError as error:
                if self._pipes and isinstance(error, BrokenPipeError):
                    raise
                _silence(self._stream)
                self._lost = error
        self._failed(self._lost)

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's."""
        return getattr(self._stream, name)


@contextmanager
def guarded_streams() -> Generator[None]:
    """Inside, all three standard streams are there, and standard output raises OutputFailed where it cannot be written.

    What standard error cannot take is dropped: there is nowhere to tell it, and the answer may have arrived.
    """
    before = {name: getattr(sys, name) for name in _NAMES}
    _open_missing()
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, _raise, pipes=True))
    sys.stderr = cast(TextIO, GuardedStream(sys.stderr, lambda _: None))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


def _open_missing() -> None:
    """In their order: the lowest free descriptor is the missing one, which no other file may get."""
    for name in _NAMES:
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, descriptor < len(_NAMES))
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="replace", closefd=False))


def _silence(stream: TextIO) -> None:
    """What a stream still holds back, and what else is written to it, goes nowhere: nothing fails a second time."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def _raise(error: OSError) -> None:
    reason = error.strerror or type(error).__name__
    raise OutputFailed(f"cannot write the output: {reason[:1].lower()}{reason[1:]}") from error
