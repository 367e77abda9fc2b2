"""Which live processes hold the history: a file each, locked for as long as its process lives.

The kernel drops the lock when the process ends, however it ends, so a lock that can be taken names a dead
owner. The name holds the process id, its start and a random part: a process id that is used again is another
owner.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from nanochat.errors import HistoryLocked, HistoryReadOnly

_NEW = ".new-"


class Owner:
    """This process's place among the holders of a history."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self.token = f"{os.getpid()}-{time.time_ns()}-{secrets.token_hex(4)}"
        fresh = folder / f"{_NEW}{self.token}"
        self._descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            _lock(self._descriptor, fcntl.LOCK_EX)
            # Renamed only now, so that nobody ever sees this name without its lock.
            fresh.rename(folder / self.token)
        except BaseException:
            os.close(self._descriptor)
            fresh.unlink(missing_ok=True)
            raise

    def others(self) -> tuple[str, ...]:
        """The tokens of the other holders that are alive."""
        return tuple(token for token in self._tokens() if token != self.token and self._held(token))

    def dead(self) -> tuple[str, ...]:
        """The tokens of holders that ended without letting go."""
        return tuple(token for token in self._tokens() if token != self.token and not self._held(token))

    def bury(self, tokens: tuple[str, ...]) -> None:
        """Remove the files of dead holders, once what they left behind is taken care of."""
        for token in tokens:
            (self._folder / token).unlink(missing_ok=True)

    def release(self) -> None:
        """Let go: the orderly end."""
        (self._folder / self.token).unlink(missing_ok=True)
        os.close(self._descriptor)

    def _tokens(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder) if not name.startswith("."))

    def _held(self, token: str) -> bool:
        try:
            descriptor = os.open(self._folder / token, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _lock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not meet
        finally:
            os.close(descriptor)


@contextmanager
def opening(folder: Path, seconds: float) -> Generator[None]:
    """Only one process at a time opens, migrates or recovers the history in `folder`.

    Raises HistoryLocked after `seconds`, HistoryReadOnly where the file system cannot lock.
    """
    descriptor = os.open(folder / "opening.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        until = time.monotonic() + seconds
        while not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() > until:
                raise HistoryLocked(
                    f"Another nanochat has been opening the chats in {folder} for {seconds:g} s. "
                    "Wait for it to finish or close it, then try again."
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        raise HistoryReadOnly(
            f"The file system of the chats cannot lock files ({error.strerror}). "
            "Keep them on a local disk: set NANOCHAT_HOME to a folder there."
        ) from error
    return True
