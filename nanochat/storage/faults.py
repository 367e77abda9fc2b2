"""What SQLite and the file system say, told to the user: what happened, and what to do next."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from nanochat.errors import (
    HistoryDamaged,
    HistoryError,
    HistoryFull,
    HistoryLocked,
    HistoryReadOnly,
    HistoryTooNew,
)

_FULL_BELOW = 1 << 20  # bytes free; less than this and a failed write was for want of space
_INDEX_DAMAGED = sqlite3.SQLITE_CORRUPT_VTAB


def explain(error: sqlite3.Error | OSError, path: Path) -> HistoryError:
    """The typed error for what went wrong with the history at `path`."""
    if isinstance(error, OSError):
        return _explain_os(error, path)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return damaged(path, str(error)) if "UTF-8" in str(error) else _unexpected(error, path)
    if code == _INDEX_DAMAGED:
        return HistoryDamaged(
            f"The search index in {path} is damaged; the messages are not. "
            "Rebuild it with `nanochat chats check --rebuild-search`."
        )
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and free_bytes(path) < _FULL_BELOW):
        return full(path)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HistoryLocked(
            f"Another process is writing to {path} and did not finish in time. "
            "What you typed is still here: try again, or close the other program."
        )
    if primary in (
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_AUTH,
    ):
        return read_only(path, str(error))
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return damaged(path, "the file is shorter than it should be")
    if primary == sqlite3.SQLITE_IOERR:
        return HistoryError(
            f"The disk failed while reading or writing {path} ({error}). Check the disk, then try again."
        )
    return _unexpected(error, path)


def full(path: Path) -> HistoryFull:
    """No space left."""
    return HistoryFull(
        f"No space is left for the chats: {free_bytes(path) / 1e6:,.1f} MB free at {path.parent}. "
        "Everything saved before is safe. Free some space and try again."
    )


def read_only(path: Path, why: str) -> HistoryReadOnly:
    """The folder may not be written."""
    return HistoryReadOnly(
        f"The chats at {path} cannot be written ({why}). "
        f"Make {path.parent} writable for you, or set NANOCHAT_HOME to another folder."
    )


def damaged(path: Path, why: str) -> HistoryDamaged:
    """The file is damaged; it is left as it is until the user says otherwise."""
    saved = newest_backup(path)
    restore = f"The newest backup is {saved}." if saved else "There is no backup of it."
    option = "; with --restore, it starts from the backup" if saved else ""
    return HistoryDamaged(
        f"The chats at {path} are damaged ({why}). Nothing was changed. {restore} `nanochat chats set-aside` "
        f"moves the damaged file aside, keeps it, and starts with an empty history{option}."
    )


def too_new(path: Path, found: int, known: int) -> HistoryTooNew:
    """A newer version's file."""
    return HistoryTooNew(
        f"The chats at {path} were written by a newer nanochat (format {found}; this one knows up to "
        f"{known}). "
        "They were not touched. Update nanochat, or set NANOCHAT_HOME to another folder."
    )


def newest_backup(path: Path) -> Path | None:
    """The newest backup of the history at `path`."""
    found = sorted(
        (path.parent / "backups").glob("chats-*.db"), key=lambda each: (each.stat().st_mtime_ns, each.name)
    )
    return found[-1] if found else None


def free_bytes(path: Path) -> int:
    """Bytes free on the file system of `path`; a great number where that cannot be asked."""
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 1 << 62


def _explain_os(error: OSError, path: Path) -> HistoryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(path)
    return read_only(path, error.strerror or str(error))


def _unexpected(error: sqlite3.Error, path: Path) -> HistoryError:
    return HistoryError(
        f"The chats at {path} could not be used: {error}. This is a fault in nanochat; please report it."
    )
