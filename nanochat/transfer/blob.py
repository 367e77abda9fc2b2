"""Fetching one file: append to its part, resume inside it, check its hash, and only then give it its name."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nanochat.errors import AccessDenied, DownloadError, NanochatError
from nanochat.transfer.connection import Response, Session
from nanochat.transfer.events import Policy
from nanochat.transfer.repository import RemoteFile

CHUNK = 1 << 20
AGAIN = (408, 425, 429, 500, 502, 503, 504)
GARBAGE_TRIES = 2
"""How often content with the wrong size or hash is fetched anew before it is the server's fault for good."""


class Meter(Protocol):
    """Where a transfer reports to; called from its own thread."""

    def at(self, file: RemoteFile, present: int, received: int = 0) -> None:
        """`present` bytes of the file are here; `received` of them came just now over the network."""
        ...

    def note(self, text: str) -> None:
        """What the transfer waits for; empty when it goes on."""
        ...


class XetOnly(DownloadError):
    """The hub serves this file through Xet alone."""


class _TryAgain(Exception):
    """A failure that may pass. `after`: seconds that the server asked to wait."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class _WrongContent(_TryAgain):
    """The server sent something that is not the file; the part has been emptied."""


def file_hash(file: RemoteFile) -> hashlib._Hash:  # pyright: ignore[reportPrivateUsage]
    """The hash whose result is the blob's name: sha256, or git's sha1 of a blob for small files."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def hash_of(path: Path, file: RemoteFile, seen: Callable[[int], None] = lambda _: None) -> str:
    """Hash a file on disk; `seen` is called with the bytes read so far."""
    digest, count = file_hash(file), 0
    with path.open("rb", buffering=0) as source:
        while piece := source.read(4 * CHUNK):
            digest.update(piece)
            count += len(piece)
            seen(count)
    return digest.hexdigest()


@dataclass
class BlobFetch:
    """One file on its way from `url` into `part`. Run by one thread, under the blob's lock."""

    session: Session
    url: str
    file: RemoteFile
    part: Path
    meter: Meter
    policy: Policy
    wait: Callable[[float], bool]
    """Sleep; True when the whole download has been given up meanwhile."""
    _have: int = 0
    _descriptor: int = -1
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)  # pyright: ignore[reportPrivateUsage]

    def run(self) -> None:
        """Leave the whole, verified and synced file in `part`, or raise DownloadError (the good bytes stay)."""
        self._descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._adopt()
            self._fetch()
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _adopt(self) -> None:
        """Take over what an earlier run left: its bytes are hashed again, the file continues after them."""
        size = os.fstat(self._descriptor).st_size
        self._digest = file_hash(self.file)
        if size > self.file.size:
            return self._empty()
        while self._have < size:
            piece = os.pread(self._descriptor, 4 * CHUNK, self._have)
            if not piece:
                break
            self._digest.update(piece)
            self._have += len(piece)
            self.meter.at(self.file, max(self._have, size))

    def _empty(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._digest, self._have = file_hash(self.file), 0
        self.meter.at(self.file, 0)

    def _fetch(self) -> None:
        failures, wrong = 0, 0
        while True:
            before = self._have
            try:
                if self._have < self.file.size:
                    self._stream()
                return self._check()
            except _WrongContent as error:
                wrong += 1
                if wrong >= GARBAGE_TRIES:
                    raise DownloadError(
                        f"{error}. Nothing of it was kept; try again later, or another endpoint"
                    ) from None
                problem, after = error, error.after
            except _TryAgain as error:
                problem, after = error, error.after
            failures = 1 if self._have > before else failures + 1
            if failures >= self.policy.tries:
                raise DownloadError(
                    f"{problem} ({failures} tries in a row). {self._have} of {self.file.size} bytes of "
                    f"{self.file.name} are kept; pull again and it goes on there"
                )
            self._pause(str(problem), after, failures)

    def _pause(self, why: str, after: float | None, failures: int) -> None:
        delay = min(self.policy.first_delay * 2 ** (failures - 1), self.policy.longest_delay)
        if after is not None:
            delay = min(max(after, delay), self.policy.longest_retry_after)
        self.meter.note(f"{why}; trying again in {delay:.0f} s")
        if self.wait(delay):
            raise DownloadError("the download was stopped")
        self.meter.note("")

    def _check(self) -> None:
        digest = self._digest.hexdigest()
        if digest != self.file.etag:
            self._empty()
            kind = "sha256" if self.file.sha256 else "git hash"
            raise _WrongContent(
                f"{self.file.name} has {kind} {digest[:12]}… where the hub lists {self.file.etag[:12]}…"
            )

    def _stream(self) -> None:
        headers = {"Range": f"bytes={self._have}-"} if self._have else {}
        try:
            answer = self.session.get(self.url, headers)
            try:
                self._accept(answer)
                self._receive(answer)
            finally:
                self.session.finish(answer)
        except NanochatError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(
                f"{self.url}: the certificate is not trusted ({error.verify_message}); "
                "behind a company proxy, name its certificate in SSL_CERT_FILE"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(f"connection lost ({_plain(error)})") from error

    def _accept(self, answer: Response) -> None:
        """Decide what an answer's head means for the part."""
        if answer.status == 206:
            return self._accept_range(answer)
        if answer.status == 200:
            length = answer.headers.get("Content-Length")
            if length is not None and int(length) != self.file.size:
                page = "an HTML page, " if "html" in answer.headers.get("Content-Type", "") else ""
                self._empty()
                raise _WrongContent(
                    f"the server sent {page}{length} bytes for {self.file.name}, which has {self.file.size}"
                )
            if self._have:  # The server ignored the range: it starts over, so do we.
                self._empty()
            return
        if answer.status == 416:
            self._empty()
            raise _WrongContent(f"the server refused to go on inside {self.file.name}")
        if answer.hop_header("X-Xet-Hash") and answer.status in (400, 403, 404):
            raise XetOnly(f"{self.file.name} is served through Xet alone")
        if answer.status in AGAIN:
            raise _TryAgain(
                f"the server answered {answer.status}", _retry_after(answer.headers.get("Retry-After"))
            )
        if answer.status in (401, 403) and len(answer.hops) == 1:
            raise AccessDenied(
                f"the hub refuses {self.file.name} ({answer.status}): your access ended or never was"
            )
        if answer.status in (401, 403):  # A signed address that ran out: the next try gets a new one.
            raise _TryAgain(f"the storage server answered {answer.status}")
        raise DownloadError(f"the server answered {answer.status} for {self.file.name}")

    def _accept_range(self, answer: Response) -> None:
        given = answer.headers.get("Content-Range", "")
        span, _, total = given.removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(self._have) or total not in ("*", str(self.file.size)):
            asked = self._have
            self._empty()
            raise _WrongContent(f"asked for {self.file.name} from byte {asked}, the server sent {given!r}")

    def _receive(self, answer: Response) -> None:
        mark, since = self._have, time.monotonic()
        while self._have < self.file.size:
            piece = answer.read1(CHUNK)
            if not piece:
                raise _TryAgain(f"the connection ended after {self._have} of {self.file.size} bytes")
            if self._have + len(piece) > self.file.size:
                break
            self._write(piece)
            self._digest.update(piece)
            self._have += len(piece)
            self.meter.at(self.file, self._have, len(piece))
            now = time.monotonic()
            if now - since > self.policy.slow_window:
                if (self._have - mark) / (now - since) < self.policy.slowest:
                    raise _TryAgain(f"only {self._have - mark} bytes came in {now - since:.0f} s")
                mark, since = self._have, now
            if self.wait(0):
                raise DownloadError("the download was stopped")
        if self._have < self.file.size or answer.read1(1):
            self._empty()
            raise _WrongContent(f"the server sent more than the {self.file.size} bytes of {self.file.name}")

    def _write(self, piece: bytes) -> None:
        view, at = memoryview(piece), self._have
        try:
            while view:
                count = os.pwrite(self._descriptor, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise disk_error(error, self.part, self.file.size - self._have) from error


def disk_error(error: OSError, path: Path, needed: int) -> DownloadError:
    """What a failed write means, with what is free and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return DownloadError(
            f"the disk is full: {free} bytes are free in {path.parent}, {needed} more are needed for this file. "
            "What was fetched is kept; free some space and pull again"
        )
    return DownloadError(f"cannot write {path}: {_plain(error)}")


def _plain(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "nothing came for too long" if isinstance(error, TimeoutError) else text


def _retry_after(text: str | None) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
