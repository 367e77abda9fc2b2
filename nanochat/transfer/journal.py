"""Downloads that are not finished, on disk: one small file each, so that a crash or a restart forgets none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nanochat.errors import UsageError
from nanochat.transfer.durable import write_whole
from nanochat.transfer.repository import check_repo_id, check_revision


@dataclass(frozen=True, slots=True)
class Entry:
    """One unfinished download."""

    repo_id: str
    revision: str
    commit: str | None = None
    paused: bool = False
    """The user paused it: it does not go on by itself."""
    done: int = 0
    total: int | None = None
    etags: list[str] = field(default_factory=list[str])
    """Names of the blobs that it fetches."""
    shape: dict[str, Any] | None = None
    """See `shape.Shape`."""

    @property
    def id(self) -> str:
        """A name for it that is also a file name."""
        return f"{self.repo_id}@{self.revision}".replace("/", "--")


@dataclass(frozen=True, slots=True)
class Journal:
    """The folder of the entries. Whoever runs a download holds its lock; the lock ends with the process."""

    folder: Path

    def entries(self) -> list[Entry]:
        """Every unfinished download, oldest file first; damaged files are left out."""
        found: list[tuple[float, Entry]] = []
        for path in self.folder.glob("*.json"):
            try:
                data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                entry = Entry(**data)
                check_repo_id(entry.repo_id)
                check_revision(entry.revision)
                found.append((path.stat().st_mtime, entry))
            except (OSError, ValueError, TypeError, UsageError):
                continue
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def write(self, entry: Entry) -> None:
        """Add or replace an entry."""
        write_whole(self.folder / f"{entry.id}.json", json.dumps(asdict(entry)))

    def remove(self, entry: Entry) -> None:
        """The download is finished or cancelled. To be called by the one who has the claim."""
        for suffix in ("json", "lock"):
            (self.folder / f"{entry.id}.{suffix}").unlink(missing_ok=True)

    def claim(self, entry: Entry) -> FileLock | None:
        """The right to run this download and to write its entry; None while another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{entry.id}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def is_running(self, entry: Entry) -> bool:
        """Whether some process fetches it right now."""
        lock = self.claim(entry)
        if lock is None:
            return True
        lock.release()
        return False
