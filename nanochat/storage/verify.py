"""Whether a history is whole: the file, every message's hash, the shape of the tree, and the search index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from nanochat.errors import HistoryError
from nanochat.storage.database import Database
from nanochat.storage.records import message_id

# What must find nothing, and what it means when it does.
_RULES = (
    ("a chat's first or current message is not among its messages",
     "SELECT id FROM chats c WHERE NOT EXISTS (SELECT 1 FROM members k WHERE k.chat = c.seq AND k.message "
     "= c.root) "
     "OR NOT EXISTS (SELECT 1 FROM members k WHERE k.chat = c.seq AND k.message = c.head AND k.hidden_at "
     "IS NULL)"),
    ("a chat holds a message without what it hangs from",
     "SELECT hex(m.id) FROM members k JOIN messages m ON m.seq = k.message WHERE m.parent IS NOT NULL AND "
     "NOT EXISTS "
     "(SELECT 1 FROM members p WHERE p.chat = k.chat AND p.message = m.parent "
     "AND (p.hidden_at IS NULL OR k.hidden_at IS NOT NULL))"),
    ("a message is older than what it hangs from",
     "SELECT hex(id) FROM messages WHERE parent >= seq"),
    ("a message belongs to no chat",
     "SELECT hex(id) FROM messages m WHERE NOT EXISTS (SELECT 1 FROM members k WHERE k.message = m.seq)"),
    ("a running reply hangs from a message that its chat does not hold",
     "SELECT id FROM running r WHERE NOT EXISTS (SELECT 1 FROM members k WHERE k.chat = r.chat AND "
     "k.message = r.parent)"),
)  # fmt: skip

_SEARCH_RULE = "INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 1)"


def verify(database: Database) -> tuple[str, ...]:
    """Everything that is wrong, a line each; empty when the history is whole."""
    found: list[str] = []
    try:
        with database.read() as connection:
            for fault in _faults(connection):
                found.append(fault)
        if not found:
            # The index against the messages themselves; it changes nothing, but FTS5 takes it as a write.
            with database.write(durable=False) as connection:
                connection.execute(_SEARCH_RULE)
    except HistoryError as error:
        found.append(str(error))
    return tuple(found)


def _faults(connection: sqlite3.Connection) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"the file: {line}"
    for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"a row of {table} refers to a row of {parent} that is not there"
    messages = connection.execute(
        "SELECT hex(m.id), coalesce(hex(p.id), ''), m.role, m.content, m.reasoning, m.token_ids, "
        "hex(m.nonce) "
        "FROM messages m LEFT JOIN messages p ON p.seq = m.parent"
    )
    for name, parent, role, content, reasoning, packed, nonce in messages:
        right = message_id(
            parent=parent, role=role, content=content, reasoning=reasoning, packed_ids=packed, nonce=nonce
        )
        if right != name.lower():
            yield f"message {name[:12].lower()} is not what was written: its text does not match its id"
    for meaning, statement in _RULES:
        for (which,) in connection.execute(statement):
            yield f"{meaning} ({which[:16].lower()})"
