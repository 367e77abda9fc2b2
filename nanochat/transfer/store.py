"""Blobs that are here and verified, or are made so: under the hub's own lock, so that each is fetched once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLock, Timeout

from nanochat.errors import DownloadError, InvalidModel
from nanochat.transfer.blob import BlobFetch, XetOnly
from nanochat.transfer.connection import Session
from nanochat.transfer.events import Policy
from nanochat.transfer.part import hash_of
from nanochat.transfer.records import Records
from nanochat.transfer.remote import USER_AGENT, HubClient
from nanochat.transfer.repository import RemoteFile, Repository, check_file
from nanochat.transfer.scratch import scratch_folder
from nanochat.transfer.tally import Tally

XET_FROM = 50 * 10**9
"""From this size on the hub serves files through Xet only (huggingface_hub: MAX_HTTP_DOWNLOAD_SIZE)."""


@dataclass
class BlobStore:
    """The blobs of one repository at one commit, shared by the threads of a download."""

    repository: Repository
    records: Records
    hub: HubClient
    commit: str
    policy: Policy
    stopped: threading.Event = field(default_factory=threading.Event)
    _small: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _notes: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def session(self) -> Generator[Session]:
        """The connections of one thread."""
        policy, hub = self.policy, self.hub
        session = Session(hub.endpoint, hub.token, USER_AGENT, policy.connect_timeout, policy.read_timeout)
        try:
            yield session
        finally:
            session.close()

    def small(self, session: Session, file: RemoteFile, most: int) -> bytes:
        """A small file's verified content. Nothing of it stays on disk until `bring` asks for the file."""
        check_file(file, self.repository.repo_id)
        if file.size > most:
            raise InvalidModel(f"{self.repository.repo_id}: {file.size} bytes are too many for a {file.name}")
        tally = Tally([file])
        if self.is_whole(file, tally):
            return self.repository.blob(file.etag).read_bytes()
        with scratch_folder() as folder:
            part = folder / "part"
            self._fetch(session, file, part, tally)
            self._small[file.etag] = part.read_bytes()
            return self._small[file.etag]

    def bring(self, session: Session, file: RemoteFile, tally: Tally) -> None:
        """Make sure that the blob is here and verified. XetOnly when it cannot come this way."""
        with self.locked(file, tally):
            if self.is_whole(file, tally):
                return
            if file.size >= XET_FROM:
                raise XetOnly(f"{file.name} has {file.size} bytes, which only Xet serves")
            part = self.repository.part(file.etag)
            if file.etag in self._small:
                part.write_bytes(self._small[file.etag])
            self._fetch(session, file, part, tally)
            self.adopt(part, file, tally)

    def adopt(self, path: Path, file: RemoteFile, tally: Tally) -> None:
        """Give a verified file its place."""
        os.replace(path, self.repository.blob(file.etag))
        self._note(file)
        tally.whole(file)

    def is_whole(self, file: RemoteFile, tally: Tally) -> bool:
        """Whether the blob is here with the right content. One that another tool fetched is hashed once."""
        blob = self.repository.blob(file.etag)
        if not blob.exists():
            return False
        if not self.records.knows(file.etag):
            if blob.stat().st_size != file.size:
                return False
            with tally.hashing(file) as seen:
                same = hash_of(blob, file, seen) == file.etag
            if not same:
                tally.at(file, 0)
                return False
            self._note(file)
        tally.whole(file)
        return True

    def _note(self, file: RemoteFile) -> None:
        with self._notes:
            self.records.note_blob(file.etag)

    def _fetch(self, session: Session, file: RemoteFile, part: Path, tally: Tally) -> None:
        url = self.hub.file_url(self.repository.repo_id, self.commit, file.name)
        BlobFetch(session, url, file, tally, self.policy, self.stopped.wait).run(part)

    @contextmanager
    def locked(self, file: RemoteFile, tally: Tally) -> Generator[None]:
        """Hold the blob's lock. While another process does, its progress counts as ours."""
        lock = self.repository.lock(file.etag)
        grown, since = -1, time.monotonic()
        while True:
            try:
                lock.acquire(timeout=0.1)
                break
            except NotImplementedError:  # a file system without flock
                lock = SoftFileLock(lock.lock_file)
            except Timeout:
                now = self.repository.growth(file.etag)
                if now > grown:
                    grown, since = now, time.monotonic()
                    tally.at(file, now)
                tally.note(f"another process is fetching {file.name}")
                if time.monotonic() - since > self.policy.lock_timeout:
                    raise DownloadError(
                        f"another process has held {lock.lock_file} for {self.policy.lock_timeout:.0f} s without "
                        f"progress on {file.name}; end it, then pull again"
                    ) from None
                if self.stopped.is_set():
                    raise DownloadError("the download was stopped") from None
        tally.note("")
        try:
            yield
        finally:
            lock.release()
