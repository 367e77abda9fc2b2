"""How far a download is: bytes by file, counted by the threads that fetch, read by the one that reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from nanochat.transfer.events import Progress
from nanochat.transfer.repository import RemoteFile


class Tally:
    """Thread-safe counters of one download; a blob that several files share counts once."""

    def __init__(self, files: Iterable[RemoteFile]) -> None:
        self.files = {file.etag: file for file in files}
        self.total = sum(file.size for file in self.files.values())
        self._lock = threading.Lock()
        self._present = dict.fromkeys(self.files, 0)
        self._whole: set[str] = set()
        self._received = 0
        self._checked: dict[str, int] = {}
        self._checking: set[str] = set()
        self._notes: dict[int, str] = {}

    def at(self, file: RemoteFile, present: int, received: int = 0) -> None:
        """`present` bytes of the file are here, `received` of them just came over the network."""
        with self._lock:
            self._present[file.etag] = min(present, file.size)
            self._received += received

    def whole(self, file: RemoteFile) -> None:
        """The file is verified and in its place."""
        with self._lock:
            self._present[file.etag] = file.size
            self._whole.add(file.etag)

    def note(self, text: str) -> None:
        """What the calling thread waits for; empty when it goes on."""
        with self._lock:
            self._notes[threading.get_ident()] = text

    @contextmanager
    def hashing(self, file: RemoteFile) -> Generator[Callable[[int], None]]:
        """While a file that was here already is checked; what it yields is told the bytes so far."""

        def seen(count: int) -> None:
            with self._lock:
                self._checked[file.etag] = count

        with self._lock:
            self._checking.add(file.etag)
        try:
            yield seen
        finally:
            with self._lock:
                self._checking.discard(file.etag)

    def waiting(self) -> str:
        """What the download waits for: the first note of any thread."""
        with self._lock:
            return next((text for text in self._notes.values() if text), "")

    def progress(self) -> Progress:
        """A consistent reading."""
        with self._lock:
            done = sum(self._present.values())
            verifying = bool(self._checking) or done == self.total
            return Progress(done, self._received, len(self._whole), sum(self._checked.values()), verifying)
