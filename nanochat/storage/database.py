"""The file under the history: opened safely, migrated after a backup, and shared by threads and processes.

Two connections, each behind a lock, serve every thread of the process: one writes, one reads. A reader never
waits for a writer (WAL), so opening a chat does not wait for another tab's commit to reach the disk.

`synchronous=FULL` for what the user was told is saved (messages, edits, settings): the commit returns when
the disk has it, so it survives a power cut; about one fsync each. `NORMAL` for what comes every second
(partial replies, drafts): no fsync; a crash of the program loses none of it, a power cut at most the newest.
Neither can damage the file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from nanochat.errors import HistoryError, HistoryLocked
from nanochat.storage import faults, files
from nanochat.storage.owner import Owner, opening
from nanochat.storage.schema import APPLICATION_ID, MIGRATIONS

_OLDEST_SQLITE = (3, 34, 0)  # the trigram tokenizer
_CHECK_ALWAYS = 32 << 20  # bytes; below this a check at open takes some tens of milliseconds
_CHECK_AFTER_CRASH = 1 << 30


class Database:
    """One open history file. Every method may be called from any thread."""

    def __init__(
        self, folder: Path, *, clock: Callable[[], float] = time.time, busy_seconds: float = 5.0,
        migrations: Sequence[Sequence[str]] = MIGRATIONS,
    ) -> None:  # fmt: skip
        """Open, and create or migrate where needed. Raises HistoryError and its kin; see `history_faults`."""
        self.folder, self.path, self.clock = folder, folder / files.NAME, clock
        self._busy, self._migrations = busy_seconds, migrations
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise HistoryError(
                f"SQLite {sqlite3.sqlite_version} is too old; nanochat needs 3.34 or newer. Update Python."
            )
        owner: Owner | None = None
        try:
            files.private_folder(folder)
            with opening(folder, busy_seconds):
                owner = Owner(folder / "owners")
                self._open(owner)
        except BaseException as error:
            self._close_connections()
            if owner is not None:
                owner.release()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise faults.explain(error, self.path) from error
            raise
        self.owner = owner

    @contextmanager
    def write(self, *, durable: bool = True) -> Generator[sqlite3.Connection]:
        """One transaction. When the block ends it is committed; with `durable`, the disk has it.

        Waits up to `busy_seconds` for other processes. On any error nothing of the block is kept.
        """
        with self._write_lock:
            connection = self._writer
            try:
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # some errors have rolled back already
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise faults.explain(error, self.path) from error

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """One snapshot: everything read in the block is of the same moment. Never waits for a writer."""
        with self._read_lock:
            connection = self._reader
            try:
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise faults.explain(error, self.path) from error

    def changed(self) -> bool:
        """Whether another process has committed since last asked. Never blocks: while we write, not yet."""
        if not self._write_lock.acquire(blocking=False):
            return False
        try:
            version = self._data_version()
        except sqlite3.Error as error:
            raise faults.explain(error, self.path) from error
        finally:
            self._write_lock.release()
        seen, self._seen_version = self._seen_version, version
        return version != seen

    def backup(self) -> Path:
        """Copy the whole history with SQLite's backup API; returns the copy. The newest five are kept."""
        with self._read_lock:
            try:
                return files.back_up(self._reader, self.folder, self.clock())
            except (sqlite3.Error, OSError) as error:
                raise faults.explain(error, self.path) from error

    def close(self) -> None:
        """Let go of the file; the last process out folds the write-ahead log into it."""
        if not self._connections:
            return
        with self._write_lock, self._read_lock:
            self._close_connections()
            self.owner.release()

    def _open(self, owner: Owner) -> None:
        if not owner.others():
            files.sweep(self.folder)
        if not self.path.exists():
            files.create(self.path)
        os.chmod(self.path, 0o600)  # -wal and -shm take the mode of the file
        dead = owner.dead()
        version = self._examine(dead)
        self._writer = writer = self._connect()
        if (mode := writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise faults.read_only(
                self.path, f"its file system does not allow a write-ahead log, only {mode}"
            )
        if version < len(self._migrations):
            self._migrate(writer, version, owner)
        self._reader = self._connect()
        self._reader.execute("PRAGMA query_only = ON")
        self._seen_version = self._data_version()
        owner.bury(dead)  # the file is whole, and recovery goes by who is alive

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self._busy, isolation_level=None, check_same_thread=False
        )
        self._connections.append(connection)
        connection.create_function("folded", 1, lambda text: str(text).casefold(), deterministic=True)
        for pragma in (
            "foreign_keys = ON", "secure_delete = ON", "cell_size_check = ON", "temp_store = MEMORY",
            "synchronous = FULL", "journal_size_limit = 67108864",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _examine(self, dead: Sequence[str]) -> int:
        """The file's format, once it is known to be ours, not newer, and whole.

        Through a connection that only reads: closing one that writes would fold the log into a damaged file.
        """
        size = self.path.stat().st_size
        if size == 0:
            raise faults.damaged(self.path, "the file is empty")
        location = f"file:{quote(str(self.path.absolute()))}?mode=ro"
        with closing(
            sqlite3.connect(location, uri=True, timeout=self._busy, isolation_level=None)
        ) as connection:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if int(connection.execute("PRAGMA application_id").fetchone()[0]) != APPLICATION_ID:
                raise faults.damaged(self.path, "it is not nanochat's, or its start is lost")
            if version > len(self._migrations):
                raise faults.too_new(self.path, version, len(self._migrations))
            if size <= (_CHECK_AFTER_CRASH if dead else _CHECK_ALWAYS):
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise faults.damaged(self.path, str(found))
        return version

    def _migrate(self, connection: sqlite3.Connection, version: int, owner: Owner) -> None:
        if version and (others := owner.others()):
            raise HistoryLocked(
                f"The chats must be brought to format {len(self._migrations)}, but {len(others)} other "
                "nanochat "
                f"(process {', '.join(each.split('-')[0] for each in others)}) uses them. Close it, then "
                "start again."
            )
        saved = files.back_up(connection, self.folder, self.clock()) if version else None
        connection.execute("BEGIN EXCLUSIVE")
        try:
            for statements in self._migrations[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            told = faults.explain(error, self.path)
            raise type(told)(
                f"{told} The chats are as they were before the migration; a backup is at {saved}."
            ) from error

    def _data_version(self) -> int:
        return int(self._writer.execute("PRAGMA data_version").fetchone()[0])

    def _close_connections(self) -> None:
        while self._connections:
            self._connections.pop().close()
