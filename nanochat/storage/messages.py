"""The messages of a chat: adding, editing, stepping through variants, deleting with undo, and reading the
path."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.storage import tree
from nanochat.storage.database import Database
from nanochat.storage.records import Conversation, Dropped, Message, Role, Status, pack_ids
from nanochat.storage.rows import MESSAGE_COLUMNS, NewMessage, chat_at, running_in, to_message

# From the head up to the root, then in order; each with its place among the siblings that this chat shows.
_PATH = f"""
WITH RECURSIVE path (seq, depth) AS (
    SELECT head, 0 FROM chats WHERE seq = :chat
    UNION ALL
    SELECT m.parent, depth + 1 FROM path JOIN messages m ON m.seq = path.seq WHERE m.parent IS NOT NULL
)
SELECT {MESSAGE_COLUMNS},
    (SELECT count(*) FROM messages s CROSS JOIN members k ON k.chat = :chat AND k.message = s.seq
     WHERE s.parent = m.parent AND s.seq <= m.seq AND k.hidden_at IS NULL),
    (SELECT count(*) FROM messages s CROSS JOIN members k ON k.chat = :chat AND k.message = s.seq
     WHERE s.parent = m.parent AND k.hidden_at IS NULL)
FROM path JOIN messages m ON m.seq = path.seq JOIN messages p ON p.seq = m.parent
ORDER BY depth DESC"""

_VARIANTS = f"""
SELECT {MESSAGE_COLUMNS}, row_number() OVER (ORDER BY m.seq), count(*) OVER ()
FROM messages m JOIN messages p ON p.seq = m.parent JOIN members k ON k.chat = :chat AND k.message = m.seq
WHERE m.parent = (SELECT parent FROM messages WHERE seq = :message) AND k.hidden_at IS NULL ORDER BY m.seq"""

_HIDE = (
    tree.BELOW
    + """UPDATE members SET hidden_at = :now, hidden_with = :top
    WHERE chat = :chat AND hidden_at IS NULL AND message IN (SELECT seq FROM below)"""
)


class Messages:
    """The messages of every chat, by ids. Each write is one short transaction; any thread may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, chat: str) -> Conversation:
        """The chat as its tab shows it: one snapshot; 500 messages take a few milliseconds."""
        with self._database.read() as connection:
            seq = tree.chat_seq(connection, chat)
            shown = chat_at(connection, seq)
            messages = tuple(to_message(row) for row in connection.execute(_PATH, {"chat": seq}))
            running = running_in(connection, seq, self._database.owner.token)
            dropped = connection.execute(
                "SELECT hex(m.id), d.turns, d.created FROM dropped d JOIN messages m ON m.seq = d.first_kept "
                "WHERE d.chat = ? ORDER BY d.seq",
                (seq,),
            )
            marks = tuple(
                Dropped(first_kept.lower(), turns, created) for first_kept, turns, created in dropped
            )
            return Conversation(shown, messages, running, marks)

    def add(
        self, chat: str, role: Role, content: str, *, parent: str | None = None, reasoning: str = "",
        token_ids: Sequence[int] = (), model: str = "", params: Mapping[str, Any] | None = None,
        status: Status = Status.DONE,
    ) -> Message:  # fmt: skip
        """Commit a message under `parent` (where the chat stands, when `None`); the chat stands there.

        Returns when the disk has it: call this with the user's text before the engine sees the request.
        """
        with self._database.write() as connection:
            seq = tree.chat_seq(connection, chat)
            above = (
                tree.head_seq(connection, seq) if parent is None else tree.member_seq(connection, seq, parent)
            )
            new = NewMessage(
                role=role, content=content, reasoning=reasoning, packed_ids=pack_ids(token_ids), model=model,
                params=params or {}, status=status, created=self._database.clock(),
            )  # fmt: skip
            return tree.append(connection, seq, above, new)

    def edit(self, chat: str, message: str, content: str) -> Message:
        """A new variant of `message` with this text, by the same role; the chat stands there. The old one
        stays."""
        with self._database.write() as connection:
            seq = tree.chat_seq(connection, chat)
            old = tree.member_seq(connection, seq, message)
            above = tree.parent_seq(connection, old)
            role = Role(connection.execute("SELECT role FROM messages WHERE seq = ?", (old,)).fetchone()[0])
            new = NewMessage(role=role, content=content, created=self._database.clock())
            return tree.append(connection, seq, above, new)

    def variants(self, chat: str, message: str) -> tuple[Message, ...]:
        """`message` and its siblings in this chat, oldest first."""
        with self._database.read() as connection:
            seq = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, seq, message)
            return tuple(
                to_message(row) for row in connection.execute(_VARIANTS, {"chat": seq, "message": top})
            )

    def step(self, chat: str, message: str, by: int) -> str:
        """Go `by` variants on from `message`, not past the first or the last, to where it was last left.

        Returns the id of the message that the chat now stands at.
        """
        with self._database.write(durable=False) as connection:
            seq = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, seq, message)
            siblings = tree.shown_siblings(connection, seq, top)
            if top not in siblings:  # a root, or deleted meanwhile
                return tree.id_of(connection, tree.head_seq(connection, seq))
            chosen = siblings[max(0, min(len(siblings) - 1, siblings.index(top) + by))]
            return self._stand(connection, seq, tree.last_visited(connection, seq, chosen))

    def go(self, chat: str, message: str) -> None:
        """Stand at `message`: the conversation ends there until something is added or another is chosen."""
        with self._database.write(durable=False) as connection:
            seq = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, seq, message)
            tree.reveal(connection, seq, top)
            tree.move_head(connection, seq, top)

    def hide(self, chat: str, message: str) -> str:
        """Delete `message` and all under it from this chat; `unhide` undoes it until the purge 30 days later.

        Other chats that share it keep it. Returns the id of the message that the chat now stands at.
        """
        with self._database.write() as connection:
            seq = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, seq, message)
            above = tree.parent_seq(connection, top)
            connection.execute(_HIDE, {"chat": seq, "top": top, "now": self._database.clock()})
            head = tree.head_seq(connection, seq)
            hidden = connection.execute(
                "SELECT hidden_at FROM members WHERE chat = ? AND message = ?", (seq, head)
            ).fetchone()[0]
            stay = head if hidden is None else tree.last_visited(connection, seq, above, below=True)
            return self._stand(connection, seq, stay)

    def unhide(self, chat: str, message: str) -> str:
        """Undo `hide`: all that went with `message` comes back, with what it hangs from.

        Returns the id of the message that the chat now stands at.
        """
        with self._database.write() as connection:
            seq = tree.chat_seq(connection, chat)
            top = tree.member_seq(connection, seq, message)
            tree.reveal(connection, seq, top, with_it=True)
            return self._stand(connection, seq, tree.last_visited(connection, seq, top))

    def drop_before(self, chat: str, first_kept: str, turns: int) -> None:
        """Record that the user dropped the oldest `turns` turns before `first_kept`, from the context."""
        with self._database.write() as connection:
            seq = tree.chat_seq(connection, chat)
            connection.execute(
                "INSERT INTO dropped (chat, first_kept, turns, created) VALUES (?, ?, ?, ?)",
                (seq, tree.member_seq(connection, seq, first_kept), turns, self._database.clock()),
            )

    def _stand(self, connection: sqlite3.Connection, chat: int, message: int) -> str:
        tree.move_head(connection, chat, message)
        return tree.id_of(connection, message)
