"""Replies while they are written: begun, saved every second, finished into the tree, recovered after a crash.

A reply's hash is known only at its end, so until then it is a row of `running` under a temporary id.
Finishing moves it into the tree in one transaction: there is no moment at which it is in neither place, or in
both.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanochat.errors import ChatNotFound
from nanochat.storage import tree
from nanochat.storage.database import Database
from nanochat.storage.records import Message, Role, Running, Status, pack_ids, storable
from nanochat.storage.rows import NewMessage, as_json


class Replies:
    """The replies that this process writes. Any thread may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self, chat: str, parent: str, *, model: str, params: Mapping[str, Any] | None = None,
        content: str = "", reasoning: str = "", token_ids: Sequence[int] = (),
    ) -> Running:  # fmt: skip
        """Announce a reply to `parent`; the chat stands there. To regenerate, give the same parent again.

        `content`, `reasoning` and `token_ids` are what it starts with: to continue an interrupted reply,
        those of that reply, under its parent. The old one stays, as a variant.
        """
        with self._database.write(durable=False) as connection:
            seq = tree.chat_seq(connection, chat)
            above = tree.member_seq(connection, seq, parent)
            tree.reveal(connection, seq, above)
            tree.move_head(connection, seq, above)
            running = Running(
                id=secrets.token_hex(8), chat=chat, parent=tree.id_of(connection, above),
                model=storable(model), params=dict(params or {}), content=storable(content),
                reasoning=storable(reasoning), packed_ids=pack_ids(token_ids), started=self._database.clock(),
                mine=True,
            )  # fmt: skip
            connection.execute(
                "INSERT INTO running (id, chat, parent, owner, model, params, content, reasoning, "
                "token_ids, started) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    running.id, seq, above, self._database.owner.token, running.model,
                    as_json(running.params), running.content, running.reasoning, running.packed_ids,
                    running.started,
                ),
            )  # fmt: skip
            return running

    def checkpoint(
        self, running: str, content: str, *, reasoning: str = "", token_ids: Sequence[int] = ()
    ) -> None:
        """Save the whole text so far; for every second. No fsync: 0.3 ms for 10,000 tokens of text and ids.

        A crash of the program loses nothing of it.
        """
        with self._database.write(durable=False) as connection:
            changed = connection.execute(
                "UPDATE running SET content = ?, reasoning = ?, token_ids = ? WHERE id = ?",
                (storable(content), storable(reasoning), pack_ids(token_ids), running),
            ).rowcount
            if changed != 1:
                raise _not_running(running)

    def finish(
        self, running: str, status: Status, content: str, *, reasoning: str = "", token_ids: Sequence[int] =
        (), metrics: Mapping[str, Any] | None = None, finish_reason: str = "", error: str = "",
    ) -> Message:  # fmt: skip
        """The reply's end: it becomes a message, with its figures. Returns when the disk has it.

        The chat moves on to it, unless the user went elsewhere meanwhile. After an error nothing has changed:
        the running reply still holds what was last saved, and this may be called again.
        """
        with self._database.write() as connection:
            row = connection.execute(f"{_RUNNING} WHERE id = ?", (running,)).fetchone()
            if row is None:
                raise _not_running(running)
            new = NewMessage(
                role=Role.ASSISTANT, content=content, reasoning=reasoning, packed_ids=pack_ids(token_ids),
                metrics=metrics or {}, status=status, finish_reason=finish_reason, error=error,
                created=self._database.clock(),
            )  # fmt: skip
            return _settle(connection, row, new)

    def recover(self) -> tuple[Message, ...]:
        """Make messages, marked interrupted, of the replies whose process is gone; returns them.

        Called at open; call it again when another nanochat has gone away.
        """
        with self._database.read() as connection:
            if not self._orphans(connection):
                return ()
        with self._database.write() as connection:
            rows = self._orphans(connection)  # asked again: who is alive now may have begun a reply meanwhile
            return tuple(_settle(connection, row, _interrupted(row, self._database.clock())) for row in rows)

    def _orphans(self, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        alive = (self._database.owner.token, *self._database.owner.others())
        marks = ", ".join("?" * len(alive))
        return connection.execute(f"{_RUNNING} WHERE owner NOT IN ({marks}) ORDER BY seq", alive).fetchall()


_RUNNING = "SELECT seq, chat, parent, model, params, content, reasoning, token_ids FROM running"


def _interrupted(row: tuple[Any, ...], now: float) -> NewMessage:
    return NewMessage(
        role=Role.ASSISTANT,
        content=row[5],
        reasoning=row[6],
        packed_ids=row[7],
        status=Status.INTERRUPTED,
        created=now,
    )


def _settle(connection: sqlite3.Connection, row: tuple[Any, ...], new: NewMessage) -> Message:
    """Move a running row into the tree: model and parameters from the row, the rest from `new`."""
    seq, chat, parent, model, params = row[:5]
    stand = tree.head_seq(connection, chat) == parent
    message = tree.append(
        connection, chat, parent, replace(new, model=model, params=json.loads(params)), stand=stand
    )
    connection.execute("DELETE FROM running WHERE seq = ?", (seq,))
    return message


def _not_running(running: str) -> ChatNotFound:
    return ChatNotFound(
        f"No reply {running!r} is running: it was finished already, or recovered by another nanochat."
    )
