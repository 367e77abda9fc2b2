"""Records as rows of the database: their columns, what is written into them, and the records that are read from them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanochat.errors import HistoryError
from nanochat.storage.records import Chat, Message, Role, Running, Status, TitleBy, storable

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


def insert_message(
    connection: sqlite3.Connection, name: str, parent: int | None, nonce: str, new: NewMessage
) -> int:
    """A row of the tree; returns its number."""
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


def chat_at(connection: sqlite3.Connection, seq: int) -> Chat:
    """The record of a chat's row."""
    return to_chat(connection.execute(f"{CHATS} WHERE c.seq = ?", (seq,)).fetchone())


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
