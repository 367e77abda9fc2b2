"""While Transformers makes a model, it changes defaults of all of torch: one at a time in a process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from nanochat.kernels.headway import made


class Turn:
    """Who makes a model now. A thread that hangs in it can be given up: then it is somebody else's turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._dtype = torch.float32  # the default before

    @contextmanager
    def alone(self) -> Generator[None]:
        """Inside it, nobody else is. To wait for another one is not to hang."""
        lock = self._lock
        while not lock.acquire(timeout=1.0) or lock is not self._lock:
            made()
            lock = self._lock
        try:
            self._thread, self._dtype = threading.get_ident(), torch.get_default_dtype()
            yield
        finally:
            if lock is self._lock:
                self._thread = None
            lock.release()

    def give_up(self, thread: int) -> None:
        """A thread was left behind: whatever lock it holds is nobody's any more, and defaults are as before."""
        if self._thread == thread:
            self._thread, self._lock = None, threading.Lock()
            torch.set_default_dtype(self._dtype)


_TURN = Turn()
alone, give_up = _TURN.alone, _TURN.give_up
