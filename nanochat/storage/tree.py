"""The rows of the tree: what the parts of the history do to it inside their transactions.

Here rows go by their sequence numbers, which grow in the order of writing; ids (hashes) are for the outside.
"""

from __future__ import annotations

import secrets
import sqlite3

from nanochat.errors import ChatNotFound, HistoryError
from nanochat.storage.records import (
    NONCE_BYTES,
    Message,
    Role,
    message_id,
    storable,
)
from nanochat.storage.rows import MESSAGE_COLUMNS, NewMessage, insert_message, to_message

TITLE_LENGTH = 80  # characters of a first line that become a title
ROOT_NONCE_BYTES = 16

# What a chat shows at a message and below it.
BELOW = """
WITH RECURSIVE below (seq) AS (
    SELECT :top
    UNION ALL
    SELECT m.seq FROM below JOIN messages m ON m.parent = below.seq
    JOIN members k ON k.chat = :chat AND k.message = m.seq AND k.hidden_at IS NULL
)"""

# A message and everything it hangs from, up to the root.
ABOVE = """
WITH RECURSIVE above (seq) AS (
    SELECT :top
    UNION ALL
    SELECT m.parent FROM above JOIN messages m ON m.seq = above.seq WHERE m.parent IS NOT NULL
)"""


def chat_seq(connection: sqlite3.Connection, chat: str) -> int:
    """The row of a chat. Raises ChatNotFound."""
    row = connection.execute("SELECT seq FROM chats WHERE id = ?", (chat,)).fetchone()
    if row is None:
        raise ChatNotFound(
            f"No chat {chat!r} on this machine; it may have been deleted. `nanochat chats list` shows all."
        )
    return int(row[0])


def member_seq(connection: sqlite3.Connection, chat: int, message: str) -> int:
    """The row of a message that `chat` holds, shown or hidden. Raises ChatNotFound."""
    row = connection.execute(
        "SELECT m.seq FROM messages m JOIN members k ON k.chat = ? AND k.message = m.seq WHERE m.id = ?",
        (chat, id_bytes(message)),
    ).fetchone()
    if row is None:
        raise ChatNotFound(f"This chat holds no message {message[:12]!r}.")
    return int(row[0])


def id_bytes(message: str) -> bytes:
    """A message id as it is stored; of the wrong form, an id that no message has."""
    try:
        return bytes.fromhex(message)
    except ValueError:
        return b""


def id_of(connection: sqlite3.Connection, message: int) -> str:
    """The id of a row."""
    return str(
        connection.execute("SELECT hex(id) FROM messages WHERE seq = ?", (message,)).fetchone()[0]
    ).lower()


def head_seq(connection: sqlite3.Connection, chat: int) -> int:
    """The row that a chat stands at."""
    return int(connection.execute("SELECT head FROM chats WHERE seq = ?", (chat,)).fetchone()[0])


def parent_seq(connection: sqlite3.Connection, message: int) -> int:
    """The row above. Raises HistoryError for the root, which is no message of the user's."""
    parent = connection.execute("SELECT parent FROM messages WHERE seq = ?", (message,)).fetchone()[0]
    if parent is None:
        raise HistoryError("The start of a chat is not a message: it cannot be edited or deleted on its own.")
    return int(parent)


def move_head(connection: sqlite3.Connection, chat: int, message: int) -> None:
    """Stand at `message`, and remember that it was the latest visit."""
    connection.execute("UPDATE chats SET head = ? WHERE seq = ?", (message, chat))
    visit(connection, chat, message)


def visit(connection: sqlite3.Connection, chat: int, message: int) -> None:
    """Make `message` the one that `last_visited` finds."""
    connection.execute("UPDATE chats SET visits = visits + 1 WHERE seq = ?", (chat,))
    connection.execute(
        "UPDATE members SET visited = (SELECT visits FROM chats WHERE seq = ?) WHERE chat = ? AND message = ?",
        (chat, chat, message),
    )


def reveal(connection: sqlite3.Connection, chat: int, top: int, *, with_it: bool = False) -> None:
    """Show `top` and what it hangs from again; `with_it`, also all that was deleted together with it."""
    connection.execute(
        ABOVE + "UPDATE members SET hidden_at = NULL, hidden_with = NULL WHERE chat = :chat "
        "AND hidden_at IS NOT NULL AND (message IN (SELECT seq FROM above) OR (:with_it AND hidden_with = "
        ":top))",
        {"chat": chat, "top": top, "with_it": with_it},
    )


def last_visited(connection: sqlite3.Connection, chat: int, top: int, *, below: bool = False) -> int:
    """Where the chat last stood at `top` or below it, among what it shows.

    With `below`, at `top` itself only where nothing is below it.
    """
    row = connection.execute(
        BELOW + "SELECT k.message FROM below JOIN members k ON k.chat = :chat AND k.message = below.seq "
        "ORDER BY :below AND k.message = :top, k.visited DESC, k.message DESC LIMIT 1",
        {"chat": chat, "top": top, "below": below},
    ).fetchone()
    return int(row[0])


def shown_siblings(connection: sqlite3.Connection, chat: int, message: int) -> list[int]:
    """The rows of `message` and its siblings that the chat shows, oldest first."""
    rows = connection.execute(
        "SELECT m.seq FROM messages m CROSS JOIN members k ON k.chat = ? AND k.message = m.seq "
        "WHERE m.parent = (SELECT parent FROM messages WHERE seq = ?) AND k.hidden_at IS NULL ORDER BY m.seq",
        (chat, message),
    )
    return [int(row[0]) for row in rows]


def plant_root(connection: sqlite3.Connection, created: float) -> int:
    """A new tree: its root, which says nothing and is like no other."""
    nonce = secrets.token_hex(ROOT_NONCE_BYTES)
    name = message_id(parent="", role=Role.ROOT, content="", reasoning="", packed_ids=b"", nonce=nonce)
    return insert_message(
        connection, name, None, nonce, NewMessage(role=Role.ROOT, content="", created=created)
    )


def append(
    connection: sqlite3.Connection, chat: int, parent: int, new: NewMessage, *, stand: bool = True
) -> Message:
    """Write `new` under `parent` into the tree and into the chat; with `stand`, the chat stands there."""
    above, nonce = id_of(connection, parent), secrets.token_hex(NONCE_BYTES)
    content, reasoning = storable(new.content), storable(new.reasoning)
    name = message_id(
        parent=above,
        role=new.role,
        content=content,
        reasoning=reasoning,
        packed_ids=new.packed_ids,
        nonce=nonce,
    )
    seq = insert_message(connection, name, parent, nonce, new)
    if stand:
        reveal(connection, chat, parent)
    # Under a deleted message it is deleted too, and comes back with it: what a chat shows is closed under
    # parents.
    connection.execute(
        "INSERT INTO members (chat, message, hidden_at, hidden_with) "
        "SELECT chat, ?, hidden_at, hidden_with FROM members WHERE chat = ? AND message = ?",
        (seq, chat, parent),
    )
    connection.execute("UPDATE chats SET updated = ? WHERE seq = ?", (new.created, chat))
    if stand:
        move_head(connection, chat, seq)
    else:
        visit(connection, chat, seq)
    if new.role is Role.USER:
        # Another window may have deleted the chat that this one still shows: what is written in it is not lost.
        connection.execute("UPDATE chats SET deleted = NULL WHERE seq = ?", (chat,))
        title = first_title(content)
        connection.execute(
            "UPDATE chats SET title = ?, title_by = 'first' WHERE seq = ? AND title_by = 'none' AND ? <> ''",
            (title, chat, title),
        )
    return _read(connection, chat, seq)


def _read(connection: sqlite3.Connection, chat: int, seq: int) -> Message:
    """A message that was written, in its place among what the chat shows."""
    row = connection.execute(
        f"SELECT {MESSAGE_COLUMNS} FROM messages m JOIN messages p ON p.seq = m.parent WHERE m.seq = ?",
        (seq,),
    ).fetchone()
    siblings = shown_siblings(connection, chat, seq)
    place = siblings.index(seq) if seq in siblings else len(siblings)
    return to_message((*row, place + 1, max(place + 1, len(siblings))))


def first_title(content: str) -> str:
    """The first line that says something, cut to a title's length."""
    line = next((line.strip() for line in content.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
