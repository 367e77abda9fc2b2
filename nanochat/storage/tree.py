"""The rows of the tree: what the parts of the history do to it inside their transactions.

Here rows go by their sequence numbers, which grow in the order of writing; ids (hashes) are for the outside.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanochat.errors import ChatNotFound, HistoryError
from nanochat.storage.records import (
    NONCE_BYTES,
    Chat,
    Message,
    Role,
    Running,
    Status,
    TitleBy,
    message_id,
    storable,
)

TITLE_LENGTH = 80  # characters of a first line that become a title
ROOT_NONCE_BYTES = 16

MESSAGE_COLUMNS = (
    "hex(m.id), hex(p.id), m.role, m.content, m.reasoning, m.token_ids, hex(m.nonce), m.model, m.params, "
    "m.metrics, "
    "m.status, m.finish_reason, m.error, m.created"
)
CHAT_COLUMNS = (
    "c.id, c.title, c.title_by, c.pinned, c.created, c.updated, c.deleted, hex(h.id), hex(r.id), "
    "c.settings, c.draft, "
    "(SELECT count(*) - 1 FROM members k WHERE k.chat = c.seq AND k.hidden_at IS NULL)"
)
CHATS = (
    f"SELECT {CHAT_COLUMNS} FROM chats c JOIN messages h ON h.seq = c.head JOIN messages r ON r.seq = c.root"
)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message before it has a place and a name."""

    role: Role
    content: str
    created: float
    reasoning: str = ""
    packed_ids: bytes = b""
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: Status = Status.DONE
    finish_reason: str = ""
    error: str = ""


def as_json(values: Mapping[str, Any]) -> str:
    """Settings, parameters or figures as they are stored. Raises HistoryError for what JSON cannot hold."""
    try:
        return storable(
            json.dumps(
                dict(values), ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
            )
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise HistoryError(
            f"These values cannot be stored with a chat ({error}): only JSON's own types can."
        ) from error


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
    return insert(connection, name, None, nonce, NewMessage(role=Role.ROOT, content="", created=created))


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
    seq = insert(connection, name, parent, nonce, new)
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


def insert(connection: sqlite3.Connection, name: str, parent: int | None, nonce: str, new: NewMessage) -> int:
    """The row itself; returns its number."""
    cursor = connection.execute(
        "INSERT INTO messages (id, parent, role, content, reasoning, token_ids, nonce, model, params, "
        "metrics, status, "
        "finish_reason, error, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            bytes.fromhex(name), parent, new.role.value, storable(new.content), storable(new.reasoning),
            new.packed_ids, bytes.fromhex(nonce), storable(new.model), as_json(new.params),
            as_json(new.metrics), new.status.value, storable(new.finish_reason), storable(new.error),
            new.created,
        ),
    )  # fmt: skip
    return int(cursor.lastrowid or 0)


def first_title(content: str) -> str:
    """The first line that says something, cut to a title's length."""
    line = next((line.strip() for line in content.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def to_message(row: tuple[Any, ...]) -> Message:
    """A record from `MESSAGE_COLUMNS`, then its place among its siblings and their number."""
    return Message(
        id=row[0].lower(), parent=row[1].lower(), role=Role(row[2]), content=row[3], reasoning=row[4],
        packed_ids=row[5], nonce=row[6].lower(), model=row[7], params=json.loads(row[8]),
        metrics=json.loads(row[9]), status=Status(row[10]), finish_reason=row[11], error=row[12],
        created=row[13], variant=row[14], variants=row[15],
    )  # fmt: skip


def to_chat(row: tuple[Any, ...]) -> Chat:
    """A record from `CHAT_COLUMNS`."""
    return Chat(
        id=row[0], title=row[1], title_by=TitleBy(row[2]), pinned=bool(row[3]), created=row[4],
        updated=row[5], deleted=row[6], head=row[7].lower(), root=row[8].lower(), settings=json.loads(row[9]),
        draft=row[10], messages=row[11],
    )  # fmt: skip


def running_in(connection: sqlite3.Connection, chat: int, owner: str) -> tuple[Running, ...]:
    """The replies of a chat that are being written, oldest first; `mine` are those of `owner`."""
    rows = connection.execute(
        "SELECT r.id, c.id, hex(p.id), r.model, r.params, r.content, r.reasoning, r.token_ids, r.started, "
        "r.owner = ? "
        "FROM running r JOIN chats c ON c.seq = r.chat JOIN messages p ON p.seq = r.parent WHERE r.chat = "
        "? ORDER BY r.seq",
        (owner, chat),
    )
    return tuple(
        Running(
            id=row[0], chat=row[1], parent=row[2].lower(), model=row[3], params=json.loads(row[4]),
            content=row[5], reasoning=row[6], packed_ids=row[7], started=row[8], mine=bool(row[9]),
        )
        for row in rows
    )  # fmt: skip
