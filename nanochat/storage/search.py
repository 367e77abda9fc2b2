"""Search: every word of the query somewhere in a message, or in a title; parts of words, any script.

Words of three characters and more go to the trigram index; shorter ones (common in Chinese) filter what it
finds, or the messages one by one where there is nothing else. No query is an error: it is cut into words and
each is quoted.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from nanochat.storage.database import Database
from nanochat.storage.records import Chat, Found, Hit, Role, Snippet, storable
from nanochat.storage.rows import chat_at

_INDEXED = 3  # characters: a trigram
_WORDS = 16
_WORD_LENGTH = 200
_BEFORE, _AFTER = 40, 120  # characters of a snippet around its first match
_ROWS = 5_000  # matching messages looked at, newest first


def search(database: Database, query: str, *, chats: int = 50, hits: int = 3) -> tuple[Found, ...]:
    """At most `chats` chats that match, the newest match first, each with its newest `hits` messages.

    Deleted chats and messages are left out. A chat whose title matches is found without a message. An empty
    query finds nothing.
    """
    words = split(query)
    if not words:
        return ()
    with database.read() as connection:
        messages: dict[int, list[Hit]] = {}
        newest: dict[int, float] = {}
        for chat, message, role, created, content in connection.execute(*_statement(words)):
            if chat not in messages and len(messages) == chats:
                continue
            found = messages.setdefault(chat, [])
            newest.setdefault(chat, created)
            if len(found) < hits:
                found.append(Hit(message.lower(), Role(role), created, snippet(content, words)))
        titled = " AND ".join("instr(folded(c.title), ?)" for _ in words)
        rows = connection.execute(
            f"SELECT c.seq, c.updated FROM chats c WHERE c.deleted IS NULL AND {titled} ORDER BY c.updated "
            "DESC LIMIT ?",
            (*(word.casefold() for word in words), chats),
        )
        for chat, updated in rows:
            newest[chat] = max(updated, newest.get(chat, updated))
        order = sorted(newest, key=lambda chat: (-newest[chat], chat))[:chats]
        return tuple(_found(_chat(connection, chat), tuple(messages.get(chat, ())), words) for chat in order)


def split(query: str) -> tuple[str, ...]:
    """The words of a query, at most 16 of at most 200 characters; NUL parts words as a space does."""
    return tuple(dict.fromkeys(word[:_WORD_LENGTH] for word in storable(query).replace("\0", " ").split()))[
        :_WORDS
    ]


def snippet(text: str, words: tuple[str, ...]) -> Snippet:
    """The surroundings of the first match on one line, with every match in them."""
    pattern = re.compile(
        "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)), re.IGNORECASE
    )
    first = pattern.search(text)
    start = max(0, first.start() - _BEFORE) if first else 0
    end = min(len(text), (first.end() if first else 0) + _AFTER)
    before, after = "…" if start else "", "…" if end < len(text) else ""
    piece = before + re.sub(r"\s", " ", text[start:end]) + after
    spans = tuple(match.span() for match in pattern.finditer(piece))
    return Snippet(piece, spans)


def _statement(words: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
    """The query for messages, newest first, and its values."""
    long = [word for word in words if len(word) >= _INDEXED]
    short = [word.casefold() for word in words if len(word) < _INDEXED]
    # CROSS JOIN keeps SQLite to this order of loops: newest matches first, without sorting them all.
    source = "message_search f CROSS JOIN messages m ON m.seq = f.rowid" if long else "messages m"
    conditions = ["k.hidden_at IS NULL", "c.deleted IS NULL", "m.role <> 'root'"]
    conditions += ["message_search MATCH ?"] if long else []
    conditions += ["instr(folded(m.content), ?)"] * len(short)
    order = "f.rowid" if long else "m.seq"
    statement = (
        f"SELECT c.seq, hex(m.id), m.role, m.created, m.content FROM {source} "
        "CROSS JOIN members k ON k.message = m.seq CROSS JOIN chats c ON c.seq = k.chat "
        f"WHERE {' AND '.join(conditions)} ORDER BY {order} DESC LIMIT {_ROWS}"
    )
    match = (" ".join('"' + word.replace('"', '""') + '"' for word in long),) if long else ()
    return statement, (*match, *short)


def _chat(connection: sqlite3.Connection, seq: int) -> Chat:
    return chat_at(connection, seq)


def _found(chat: Chat, hits: tuple[Hit, ...], words: tuple[str, ...]) -> Found:
    title = snippet(chat.title, words)
    return Found(chat, title, hits)
