"""Chats on disk: one SQLite file with a hash-chained tree of messages, which never loses what it has taken.

    with History.open(folder) as history:
        chat = history.chats.create(settings={"system_prompt": "Be brief."})
        question = history.messages.add(chat.id, Role.USER, "Why is the sky blue?")  # then submit
        reply = history.replies.begin(chat.id, question.id, model="...")
        history.replies.checkpoint(reply.id, "Because")  # every second
        history.replies.finish(reply.id, Status.DONE, "Because of ...", metrics=output.metrics.as_dict())

Threads: one `History` serves all threads of a process. Calls that write queue behind one lock, calls that
read behind another, so reading never waits for a disk. Costs: a durable write is one fsync (1 to 20 ms), a
checkpoint well below a millisecond, opening a chat of 500 messages and listing 1,000 chats a few milliseconds
each. While another process writes, a write waits (5 s at most, then HistoryLocked): call from a worker, not
from an event loop.

Processes: several may open the same folder. Each is known by a locked file; `others()` counts the rest,
`changed()` says when one of them has written. Replies of a process that died become messages marked
interrupted at the next open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from nanochat.exchange.bundle import ChatBundle, Imported, gather, store
from nanochat.settings import Paths
from nanochat.storage import search as history_search
from nanochat.storage.chats import Chats
from nanochat.storage.database import Database
from nanochat.storage.faults import newest_backup
from nanochat.storage.messages import Messages
from nanochat.storage.records import Found, Message
from nanochat.storage.replies import Replies
from nanochat.storage.schema import MIGRATIONS
from nanochat.storage.tabs import Tabs
from nanochat.storage.verify import verify


def chats_folder() -> Path:
    """Where this user's chats are: `chats` in the data folder (`NANOCHAT_HOME` moves it)."""
    return Paths.find().data / "chats"


class History:
    """An open history, in parts: `chats`, `messages`, `replies`, `tabs`, and the whole (search, others,
    backup)."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.chats = Chats(database)
        self.messages = Messages(database)
        self.replies = Replies(database)
        self.tabs = Tabs(database)
        self.recovered: tuple[Message, ...] = ()

    @classmethod
    def open(
        cls, folder: Path, *, clock: Callable[[], float] = time.time, busy_seconds: float = 5.0,
        migrations: Sequence[Sequence[str]] = MIGRATIONS,
    ) -> History:  # fmt: skip
        """Open the history in `folder`, making it where there is none.

        Migrates an older one after a backup, makes interrupted messages of dead processes' replies
        (`recovered`), and removes what was deleted 30 days ago.

        Raises HistoryReadOnly, HistoryFull, HistoryLocked, HistoryDamaged or HistoryTooNew; nothing is
        changed then.
        """
        database = Database(folder, clock=clock, busy_seconds=busy_seconds, migrations=migrations)
        try:
            history = cls(database)
            history.recovered = history.replies.recover()
            history.chats.purge()
        except BaseException:
            database.close()
            raise
        return history

    def search(self, query: str, *, chats: int = 50, hits: int = 3) -> tuple[Found, ...]:
        """Chats with a message or a title that holds every word of `query`; see `history_search`."""
        return history_search.search(self.database, query, chats=chats, hits=hits)

    def others(self) -> tuple[int, ...]:
        """The process ids of the other live nanochats on this history."""
        return tuple(int(token.split("-")[0]) for token in self.database.owner.others())

    def changed(self) -> bool:
        """Whether another process has written since the last call; never blocks. Then read again what is
        shown."""
        return self.database.changed()

    def bundle(self, chat: str) -> ChatBundle:
        """A chat with all its messages and variants, for export. Deleted ones are left out; what was saved of those
        that are being written is apart."""
        return gather(self.database, chat)

    def take_in(self, bundles: Sequence[ChatBundle]) -> Imported:
        """Import chats, all or none. One that is here already is merged: what it lacks is added, nothing twice.

        Raises ChatImportError for a message that does not match its id, or a tree that is not whole.
        """
        return store(self.database, bundles)

    def check(self) -> tuple[str, ...]:
        """What is wrong, a line each; empty when all is well. Reads the whole file and recomputes each id."""
        return verify(self.database)

    def rebuild_search(self) -> None:
        """Make the search index anew from the messages."""
        with self.database.write() as connection:
            connection.execute("INSERT INTO message_search (message_search) VALUES ('rebuild')")

    def backup(self) -> Path:
        """Copy the whole history into `backups/`, of which the newest five are kept; returns the copy."""
        return self.database.backup()

    def backup_if_due(self, days: float = 7.0) -> Path | None:
        """Make a backup when the newest is older than `days`; for idle time. Returns it, or `None`."""
        newest = newest_backup(self.database.path)
        if newest is not None and self.database.clock() - newest.stat().st_mtime < days * 86_400:
            return None
        return self.backup()

    def close(self) -> None:
        """Let go. Replies still running are found by the next open, as after a crash."""
        self.database.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
