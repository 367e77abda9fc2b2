"""The tables of the history, version by version. A migration is a tuple of statements; its place is its
version."""

from __future__ import annotations

APPLICATION_ID = 0x6E616E6F  # "nano", in the header of the file

_CHATS = """
CREATE TABLE chats (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL DEFAULT '',
    title_by TEXT NOT NULL DEFAULT 'none' CHECK (title_by IN ('none', 'first', 'auto', 'user')),
    pinned INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    deleted REAL,
    root INTEGER NOT NULL REFERENCES messages (seq),
    head INTEGER NOT NULL REFERENCES messages (seq),
    visits INTEGER NOT NULL DEFAULT 0,
    settings TEXT NOT NULL DEFAULT '{}',
    draft TEXT NOT NULL DEFAULT ''
)"""

# The tree. A row is never changed (a trigger refuses it) and goes only when no chat holds it any more.
_MESSAGES = """
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    parent INTEGER REFERENCES messages (seq),
    role TEXT NOT NULL CHECK (role IN ('root', 'user', 'assistant', 'system', 'tool')),
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    nonce BLOB NOT NULL,
    model TEXT NOT NULL,
    params TEXT NOT NULL,
    metrics TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'stopped', 'failed', 'interrupted')),
    finish_reason TEXT NOT NULL,
    error TEXT NOT NULL,
    created REAL NOT NULL,
    CHECK ((parent IS NULL) = (role = 'root'))
)"""

# Which chat shows which message. A fork adds rows here and copies no message. Closed under parents.
_MEMBERS = """
CREATE TABLE members (
    chat INTEGER NOT NULL REFERENCES chats (seq) ON DELETE CASCADE,
    message INTEGER NOT NULL REFERENCES messages (seq),
    visited INTEGER NOT NULL DEFAULT 0,
    hidden_at REAL,
    hidden_with INTEGER,
    PRIMARY KEY (chat, message)
) WITHOUT ROWID"""

# Replies that have no hash yet. The owner is the process that writes them (history_owner.py).
_RUNNING = """
CREATE TABLE running (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    chat INTEGER NOT NULL REFERENCES chats (seq),
    parent INTEGER NOT NULL REFERENCES messages (seq),
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    params TEXT NOT NULL,
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    started REAL NOT NULL
)"""

_DROPPED = """
CREATE TABLE dropped (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    chat INTEGER NOT NULL REFERENCES chats (seq) ON DELETE CASCADE,
    first_kept INTEGER NOT NULL REFERENCES messages (seq) ON DELETE CASCADE,
    turns INTEGER NOT NULL,
    created REAL NOT NULL
)"""

_TABS = """
CREATE TABLE tabs (
    owner TEXT NOT NULL,
    position INTEGER NOT NULL,
    chat INTEGER REFERENCES chats (seq) ON DELETE CASCADE,
    draft TEXT NOT NULL DEFAULT '',
    active INTEGER NOT NULL DEFAULT 0,
    saved REAL NOT NULL,
    PRIMARY KEY (owner, position)
) WITHOUT ROWID"""

# Trigrams: any part of a word is found, in every script, with no list of word boundaries. The index keeps no
# copy of the text: it reads `messages`, so the two can only agree.
_SEARCH = """
CREATE VIRTUAL TABLE message_search USING fts5 (content, content='messages', content_rowid='seq',
tokenize='trigram')"""

_FIRST = (
    _CHATS,
    _MESSAGES,
    _MEMBERS,
    _RUNNING,
    _DROPPED,
    _TABS,
    _SEARCH,
    "CREATE INDEX chats_listed ON chats (deleted, pinned DESC, updated DESC)",
    "CREATE INDEX chats_roots ON chats (root)",
    "CREATE INDEX chats_heads ON chats (head)",
    "CREATE INDEX messages_children ON messages (parent)",
    "CREATE INDEX members_chats ON members (message)",
    "CREATE INDEX members_hidden ON members (hidden_at) WHERE hidden_at IS NOT NULL",
    "CREATE INDEX running_chat ON running (chat)",
    "CREATE INDEX dropped_chat ON dropped (chat)",
    "CREATE INDEX dropped_message ON dropped (first_kept)",
    """CREATE TRIGGER messages_searched AFTER INSERT ON messages BEGIN
        INSERT INTO message_search (rowid, content) VALUES (new.seq, new.content);
    END""",
    """CREATE TRIGGER messages_forgotten AFTER DELETE ON messages BEGIN
        INSERT INTO message_search (message_search, rowid, content) VALUES ('delete', old.seq, old.content);
    END""",
    """CREATE TRIGGER messages_immutable BEFORE UPDATE ON messages BEGIN
        SELECT RAISE(ABORT, 'a message is never changed');
    END""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)
