"""A file on its way: the bytes that are here, their hash, and getting both onto the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from nanochat.errors import DownloadError
from nanochat.transfer.repository import RemoteFile

READ = 4 << 20
LARGE = 64 << 20
"""From this size on hashing and writing to the disk happen behind the thread that receives."""


class Hash(Protocol):
    """One of hashlib's."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        ...


def file_hash(file: RemoteFile) -> Hash:
    """The hash whose result is the blob's name: sha256, or git's sha1 of a blob for small files."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def hash_of(path: Path, file: RemoteFile, seen: Callable[[int], None] = lambda _: None) -> str:
    """Hash a file on disk; `seen` is called with the bytes read so far."""
    digest, count = file_hash(file), 0
    with path.open("rb", buffering=0) as source:
        while piece := source.read(READ):
            digest.update(piece)
            count += len(piece)
            seen(count)
    return digest.hexdigest()


class Part:
    """The file at `path` that grows to `file`. Used by one thread; DownloadError when the disk refuses."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._path, self._file = path, file
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._digest = file_hash(file)
        self._behind = _Behind(self._descriptor) if file.size >= LARGE else None
        self.have = 0
        """Bytes from the start that are here and hashed."""

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._behind is not None:
            self._behind.stop()
        os.close(self._descriptor)

    def adopt(self, seen: Callable[[int], None]) -> None:
        """Take over what an earlier run left: hash its bytes again, to continue after them."""
        size = os.fstat(self._descriptor).st_size
        if size > self._file.size:
            return self.empty()
        while self.have < size and (piece := os.pread(self._descriptor, READ, self.have)):
            self._digest.update(piece)
            self.have += len(piece)
            seen(size)

    def empty(self) -> None:
        """Start over: nothing of what is here is the file."""
        if self._behind is not None:
            self._behind.drain()
        os.ftruncate(self._descriptor, 0)
        self._digest, self.have = file_hash(self._file), 0

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        view, at = memoryview(piece), self.have
        try:
            while view:
                count = os.pwrite(self._descriptor, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise disk_error(error, self._path, self._file.size - self.have) from error
        if self._behind is None:
            self._digest.update(piece)
        else:
            self._behind.put(self._digest, piece)
        self.have = at

    def digest(self) -> str:
        """The hash of all that is here."""
        if self._behind is not None:
            self._behind.drain()
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Return when every byte is on the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise disk_error(error, self._path, 0) from error


class _Behind:
    """Two threads behind the receiving one: the first hashes, the second sends what was written to the disk.

    Without them a fast network waits for the processor, and at the end of a file for the disk. What is on the disk
    leaves the page cache: a download in the background must not push out what the chat's model reads there, and
    memory that is used again is faster than memory that the system has to find (on a virtual machine, 4 times).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: queue.Queue[tuple[Hash, bytes] | None] = queue.Queue(maxsize=16)
        self._written, self._stopped = threading.Event(), False
        self._unsent = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._hash, self._send)]
        for thread in self._threads:
            thread.start()

    def put(self, digest: Hash, piece: bytes) -> None:
        """Hash a piece soon."""
        self._pieces.put((digest, piece))
        self._unsent += len(piece)
        if self._unsent >= LARGE:
            self._unsent = 0
            self._written.set()

    def drain(self) -> None:
        """Return when everything is hashed."""
        self._pieces.join()

    def stop(self) -> None:
        """End both threads."""
        self._stopped = True
        self._pieces.put(None)
        self._written.set()
        for thread in self._threads:
            thread.join()

    def _hash(self) -> None:
        while (work := self._pieces.get()) is not None:
            digest, piece = work
            digest.update(piece)
            self._pieces.task_done()

    def _send(self) -> None:
        while self._written.wait() and not self._stopped:
            self._written.clear()
            try:
                os.fsync(self._descriptor)
                if hasattr(os, "posix_fadvise"):  # not on macOS
                    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                return  # `Part.sync` meets the same error and reports it


def disk_error(error: OSError, path: Path, needed: int) -> DownloadError:
    """What a failed write means, with what is free and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return DownloadError(
            f"the disk is full: {free} bytes are free in {path.parent}, {needed} more are needed for this file. "
            "What was fetched is kept; free some space and pull again"
        )
    return DownloadError(f"cannot write {path}: {error.strerror or error}")
