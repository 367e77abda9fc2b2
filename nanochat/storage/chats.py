"""The list of chats: making, naming, pinning, forking, deleting with undo, and the days they belong to."""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from itertools import count
from typing import Any

from nanochat.errors import ChatNotFound, UsageError
from nanochat.storage import tree
from nanochat.storage.database import Database
from nanochat.storage.records import Chat, TitleBy, storable
from nanochat.storage.rows import CHATS, as_json, chat_at, to_chat

KEPT_DAYS = 30  # after this, what was deleted is gone
_DAY = 86_400.0
_RANK = {TitleBy.NONE: 0, TitleBy.FIRST: 1, TitleBy.AUTO: 2, TitleBy.USER: 3}


@dataclass(frozen=True, slots=True)
class Day:
    """The chats of one local day, newest first; `date` is `None` for the pinned ones, which come first."""

    date: date | None
    chats: tuple[Chat, ...]


class Chats:
    """All chats, by ids. Each write is one short transaction; any thread may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, *, title: str = "", settings: Mapping[str, Any] | None = None) -> Chat:
        """An empty chat. Make it with its first message, not with its tab: an empty one is listed too."""
        now = self._database.clock()
        with self._database.write() as connection:
            root = tree.plant_root(connection, now)
            seq = _insert(
                connection,
                storable(title),
                TitleBy.USER if title else TitleBy.NONE,
                now,
                root,
                settings or {},
            )
            connection.execute("INSERT INTO members (chat, message) VALUES (?, ?)", (seq, root))
            return _chat(connection, seq)

    def fork(self, chat: str, message: str, *, title: str = "") -> Chat:
        """A new chat that stands at `message` and shares it and all above it; nothing is copied but the settings.

        Without `title` it has the old chat's behind "Fork", and no model replaces that: it would find the old one's.
        """
        now = self._database.clock()
        with self._database.write() as connection:
            source = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, source, message)
            old = _chat(connection, source)
            root = int(connection.execute("SELECT root FROM chats WHERE seq = ?", (source,)).fetchone()[0])
            by = max(TitleBy.USER if title else TitleBy.AUTO, old.title_by, key=_RANK.__getitem__)
            title = title or _derived(connection, "Fork", old.title)
            by = by if title else TitleBy.NONE
            seq = _insert(connection, storable(title), by, now, root, old.settings)
            connection.execute(
                tree.ABOVE + "INSERT INTO members (chat, message) SELECT :chat, seq FROM above",
                {"chat": seq, "top": top},
            )
            connection.execute(
                "INSERT INTO dropped (chat, first_kept, turns, created) SELECT k.chat, d.first_kept, "
                "d.turns, d.created "
                "FROM dropped d JOIN members k ON k.chat = ? AND k.message = d.first_kept WHERE d.chat = ? "
                "ORDER BY d.seq",
                (seq, source),
            )
            tree.move_head(connection, seq, top)
            return _chat(connection, seq)

    def derived_title(self, word: str, title: str) -> str:
        """A title for a chat that came from one with `title`, which no chat has: `Fork · Rivers`, `Fork 2 · Rivers`."""
        with self._database.read() as connection:
            return _derived(connection, word, title)

    def get(self, chat: str) -> Chat:
        """One chat, deleted or not. Raises ChatNotFound."""
        with self._database.read() as connection:
            return _chat(connection, tree.chat_seq(connection, chat))

    def find(self, start: str, *, deleted: bool = False) -> Chat:
        """The one chat, or deleted chat, whose id starts with `start`.

        Raises:
            ChatNotFound: there is none.
            UsageError: there are several.
        """
        which, shown_by = ("NOT NULL", "list --deleted") if deleted else ("NULL", "list")
        with self._database.read() as connection:
            rows = connection.execute(
                f"{CHATS} WHERE substr(c.id, 1, length(?)) = ? AND c.deleted IS {which} LIMIT 5",
                (start, start),
            ).fetchall()
        if not rows or not start:
            raise ChatNotFound(
                f"No {'deleted ' if deleted else ''}chat has an id that starts with {start!r}. "
                f"`nanochat chats {shown_by}` shows all."
            )
        if len(rows) > 1:
            raise UsageError(
                f"Several chats start with {start!r}: {', '.join(row[0] for row in rows)}. Give more of "
                "the id."
            )
        return to_chat(rows[0])

    def list(self, *, deleted: bool = False) -> tuple[Chat, ...]:
        """All chats, pinned first, then by their last change; with `deleted`, those awaiting the purge."""
        which = "c.deleted IS NOT NULL" if deleted else "c.deleted IS NULL"
        with self._database.read() as connection:
            rows = connection.execute(
                f"{CHATS} WHERE {which} ORDER BY c.pinned DESC, c.updated DESC, c.seq DESC"
            )
            return tuple(to_chat(row) for row in rows)

    def rename(self, chat: str, title: str, *, by: TitleBy = TitleBy.USER) -> bool:
        """Give a chat its title. One by the model (`AUTO`) never replaces the user's; returns whether it was
        taken."""
        with self._database.write(durable=by is TitleBy.USER) as connection:
            seq = tree.chat_seq(connection, chat)
            if _RANK[_chat(connection, seq).title_by] > _RANK[by]:
                return False
            connection.execute(
                "UPDATE chats SET title = ?, title_by = ? WHERE seq = ?", (storable(title), by.value, seq)
            )
            return True

    def pin(self, chat: str, pinned: bool = True) -> None:
        """Keep a chat at the top of the list, or let it go."""
        self._set(chat, "pinned", int(pinned))

    def set_settings(self, chat: str, settings: Mapping[str, Any]) -> None:
        """Replace the chat's own settings: system prompt, sampling, thinking, model; any JSON object."""
        self._set(chat, "settings", as_json(settings))

    def delete(self, chat: str) -> None:
        """Delete a chat; `restore` undoes it until the purge 30 days later."""
        self._set(chat, "deleted", self._database.clock())

    def restore(self, chat: str) -> None:
        """Undo `delete`."""
        self._set(chat, "deleted", None)

    def purge(self, *, days: float = KEPT_DAYS) -> int:
        """Remove for good what was deleted more than `days` ago; returns how many messages went.

        Messages that another chat shares stay. A chat with a running reply waits.
        """
        before = self._database.clock() - days * _DAY
        with self._database.read() as connection:  # an open need not wait for a writer when nothing is due
            due = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM chats WHERE deleted <= ?1) "
                "OR EXISTS (SELECT 1 FROM members WHERE hidden_at <= ?1)",
                (before,),
            ).fetchone()[0]
        if not due:
            return 0
        with self._database.write() as connection:
            old = "SELECT seq FROM chats WHERE deleted <= ? AND seq NOT IN (SELECT chat FROM running)"
            connection.execute(f"DELETE FROM members WHERE chat IN ({old})", (before,))
            connection.execute(f"DELETE FROM dropped WHERE chat IN ({old})", (before,))
            connection.execute(
                "DELETE FROM members WHERE hidden_at <= ? AND message NOT IN (SELECT parent FROM running)",
                (before,),
            )
            connection.execute(f"DELETE FROM chats WHERE seq IN ({old})", (before,))
            # A child is in no chat where its parent is in none, so whole subtrees go in this one statement.
            return connection.execute(
                "DELETE FROM messages WHERE NOT EXISTS (SELECT 1 FROM members WHERE message = messages.seq)"
            ).rowcount

    def _set(self, chat: str, column: str, value: object) -> None:
        with self._database.write() as connection:
            connection.execute(
                f"UPDATE chats SET {column} = ? WHERE seq = ?", (value, tree.chat_seq(connection, chat))
            )


def by_day(chats: Iterable[Chat]) -> tuple[Day, ...]:
    """Group a list in its order: the pinned first, then the local day of each chat's last change, newest
    first."""
    days: dict[date | None, list[Chat]] = {}
    for chat in chats:
        days.setdefault(None if chat.pinned else datetime.fromtimestamp(chat.updated).date(), []).append(chat)
    order = sorted(days, key=lambda day: (day is not None, -day.toordinal() if day else 0))
    return tuple(Day(day, tuple(days[day])) for day in order)


def _insert(
    connection: sqlite3.Connection,
    title: str,
    by: TitleBy,
    now: float,
    root: int,
    settings: Mapping[str, Any],
) -> int:
    cursor = connection.execute(
        "INSERT INTO chats (id, title, title_by, created, updated, root, head, settings) VALUES (?, ?, ?, "
        "?, ?, ?, ?, ?)",
        (secrets.token_hex(8), title, by.value, now, now, root, root, as_json(settings)),
    )
    return int(cursor.lastrowid or 0)


def _chat(connection: sqlite3.Connection, seq: int) -> Chat:
    return chat_at(connection, seq)


def _derived(connection: sqlite3.Connection, word: str, title: str) -> str:
    """The word stands first, since tabs and lists cut the end of a long title; "" for a chat without one."""
    if not title:
        return ""
    stem = re.sub(rf"^{word}(?: \d+)? · ", "", title)
    start = f"{word} "
    rows = connection.execute("SELECT title FROM chats WHERE substr(title, 1, ?) = ?", (len(start), start))
    taken = {row[0] for row in rows}
    names = (f"{start}{number} · {stem}" if number > 1 else f"{start}· {stem}" for number in count(1))
    return next(name for name in names if name not in taken)
