"""The files of a history: private, made whole or not at all, backed up, and moved aside on the user's word."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nanochat.errors import HistoryLocked
from nanochat.storage import faults
from nanochat.storage.owner import Owner, opening
from nanochat.storage.schema import APPLICATION_ID

NAME = "chats.db"
BACKUPS_KEPT = 5


def back_up(connection: sqlite3.Connection, folder: Path, now: float) -> Path:
    """Copy what `connection` sees into `folder/backups` with SQLite's backup API; the newest five are kept."""
    backups = folder / "backups"
    private_folder(backups)
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    descriptor, name = tempfile.mkstemp(prefix=".copying-", dir=backups)  # mode 0600
    os.close(descriptor)
    temporary = Path(name)
    try:
        copy = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, no log beside it
        finally:
            copy.close()
        target = next(path for path in _names(backups, f"chats-v{version}-{stamp}") if not path.exists())
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
    made = sorted(backups.glob("chats-*.db"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in made[:-BACKUPS_KEPT]:
        path.unlink()
    return target


def set_aside(folder: Path, *, backup: Path | None = None, busy_seconds: float = 5.0) -> Path:
    """Move a damaged history out of the way, on the user's word; returns where it is now. Nothing is deleted.

    With `backup`, a copy of it becomes the history. Raises HistoryLocked while another nanochat uses it.
    """
    path = folder / NAME
    try:
        with opening(folder, busy_seconds):
            owner = Owner(folder / "owners")
            try:
                if owner.others():
                    raise HistoryLocked(
                        "Another nanochat uses these chats. Close it, then move the file aside."
                    )
                return _move_aside(path, backup)
            finally:
                owner.release()
    except OSError as error:
        raise faults.explain(error, path) from error


def _move_aside(path: Path, backup: Path | None) -> Path:
    stem = f"chats-damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    target = next(each for each in _names(path.parent, stem) if not each.exists())
    for suffix in ("-wal", "-shm", ""):  # the file itself last: until then it is still the history
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(target.with_name(target.name + suffix))
    if backup is not None:
        descriptor, temporary = tempfile.mkstemp(prefix=".new-chats-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as copy, backup.open("rb") as saved:
            shutil.copyfileobj(saved, copy)
            copy.flush()
            os.fsync(copy.fileno())
        os.rename(temporary, path)
    return target


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.db"
    for number in range(2, 10_000):
        yield folder / f"{stem}-{number}.db"


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left half made; only while no other one is there to need it."""
    for left in (
        *folder.glob(".new-chats-*"),
        *folder.glob("backups/.copying-*"),
        *folder.glob("owners/.new-*"),
    ):
        left.unlink(missing_ok=True)


def private_folder(folder: Path) -> None:
    """A folder that only the user may read, made where there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        os.chmod(folder, 0o700)


def create(path: Path) -> None:
    """A database without tables, for the user only, there in one step: so an empty file is always damage.

    It is never opened but through SQLite once it has its name: closing a descriptor of it would drop SQLite's
    locks.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".new-chats-", dir=path.parent)
    os.close(descriptor)
    fresh = sqlite3.connect(temporary, isolation_level=None)
    try:
        fresh.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    finally:
        fresh.close()
    os.rename(temporary, path)
