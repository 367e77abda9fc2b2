"""Fetching one file: ask for what is missing of it, judge every answer, try again as long as that has a point."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nanochat.errors import AccessDenied, DownloadError, NanochatError
from nanochat.transfer.connection import Response, Session
from nanochat.transfer.events import Policy
from nanochat.transfer.part import Part
from nanochat.transfer.repository import RemoteFile

CHUNK = 1 << 19
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


@dataclass
class BlobFetch:
    """One file on its way from `url`. Run by one thread, under the blob's lock."""

    session: Session
    url: str
    file: RemoteFile
    meter: Meter
    policy: Policy
    wait: Callable[[float], bool]
    """Sleep; True when the whole download has been given up meanwhile."""

    def run(self, path: Path) -> None:
        """Leave the whole, verified and synced file at `path`, or raise DownloadError (the good bytes stay)."""
        with Part(path, self.file) as part:
            part.adopt(lambda present: self.meter.at(self.file, present))
            self._fetch(part)
            part.sync()

    def _empty(self, part: Part) -> None:
        part.empty()
        self.meter.at(self.file, 0)

    def _fetch(self, part: Part) -> None:
        failures, wrong = 0, 0
        while True:
            before = part.have
            try:
                if part.have < self.file.size:
                    self._stream(part)
                return self._check(part)
            except _WrongContent as error:
                wrong += 1
                if wrong >= GARBAGE_TRIES:
                    raise DownloadError(
                        f"{error}. Nothing of it was kept; try again later, or another endpoint"
                    ) from None
                problem, after = error, error.after
            except _TryAgain as error:
                problem, after = error, error.after
            failures = 1 if part.have > before else failures + 1
            if failures >= self.policy.tries:
                raise DownloadError(
                    f"{problem} ({failures} tries in a row). {part.have} of {self.file.size} bytes of "
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

    def _check(self, part: Part) -> None:
        digest = part.digest()
        if digest != self.file.etag:
            self._empty(part)
            kind = "sha256" if self.file.sha256 else "git hash"
            raise _WrongContent(
                f"{self.file.name} has {kind} {digest[:12]}… where the hub lists {self.file.etag[:12]}…"
            )

    def _stream(self, part: Part) -> None:
        headers = {"Range": f"bytes={part.have}-"} if part.have else {}
        try:
            answer = self.session.get(self.url, headers)
            try:
                self._accept(part, answer)
                self._receive(part, answer)
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

    def _accept(self, part: Part, answer: Response) -> None:
        """Decide what an answer's head means for the part."""
        if answer.status == 206:
            return self._accept_range(part, answer)
        if answer.status == 200:
            length = answer.headers.get("Content-Length")
            if length is not None and int(length) != self.file.size:
                page = "an HTML page, " if "html" in answer.headers.get("Content-Type", "") else ""
                self._empty(part)
                raise _WrongContent(
                    f"the server sent {page}{length} bytes for {self.file.name}, which has {self.file.size}"
                )
            if part.have:  # The server ignored the range: it starts over, so do we.
                self._empty(part)
            return
        if answer.status == 416:
            self._empty(part)
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

    def _accept_range(self, part: Part, answer: Response) -> None:
        given = answer.headers.get("Content-Range", "")
        span, _, total = given.removeprefix("bytes ").partition("/")
        if span.partition("-")[0] != str(part.have) or total not in ("*", str(self.file.size)):
            asked = part.have
            self._empty(part)
            raise _WrongContent(f"asked for {self.file.name} from byte {asked}, the server sent {given!r}")

    def _receive(self, part: Part, answer: Response) -> None:
        mark, since = part.have, time.monotonic()
        while part.have < self.file.size:
            piece = answer.read1(CHUNK)
            if not piece:
                raise _TryAgain(f"the connection ended after {part.have} of {self.file.size} bytes")
            if part.have + len(piece) > self.file.size:
                break
            part.write(piece)
            self.meter.at(self.file, part.have, len(piece))
            now = time.monotonic()
            if now - since > self.policy.slow_window:
                if (part.have - mark) / (now - since) < self.policy.slowest:
                    raise _TryAgain(f"only {part.have - mark} bytes came in {now - since:.0f} s")
                mark, since = part.have, now
            if self.wait(0):
                raise DownloadError("the download was stopped")
        if part.have < self.file.size or answer.read1(1):
            self._empty(part)
            raise _WrongContent(f"the server sent more than the {self.file.size} bytes of {self.file.name}")


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
