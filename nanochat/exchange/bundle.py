"""A chat on its way in or out: all its messages in one record, taken from a history or put into one whole."""

from __future__ import annotations

import math
import re
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat.errors import ChatImportError
from nanochat.storage import tree
from nanochat.storage.database import Database
from nanochat.storage.records import (
    NONCE_BYTES,
    Dropped,
    Message,
    Role,
    Running,
    Status,
    TitleBy,
    storable,
)
from nanochat.storage.rows import (
    MESSAGE_COLUMNS,
    NewMessage,
    as_json,
    chat_at,
    insert_message,
    running_in,
    to_message,
)

MAX_DEPTH = 32  # of settings, parameters and figures
_CHAT_ID = re.compile(r"[0-9a-f]{8,64}")
_MESSAGE_ID = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}|[0-9a-f]{{{2 * tree.ROOT_NONCE_BYTES}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatBundle:
    """One chat: its root first, then every message after what it hangs from; `head` is where it stands.

    `unfinished` are the replies that were being written when it was taken, as a crash at that moment would leave them.
    """

    id: str
    title: str
    title_by: TitleBy
    created: float
    updated: float
    head: str
    messages: tuple[Message, ...]
    pinned: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dropped: tuple[Dropped, ...] = ()
    unfinished: tuple[Message, ...] = ()

    def with_unfinished(self) -> ChatBundle:
        """The chat as a file has it: with the text so far of each reply, standing at the one that it waits for."""
        waited = [reply.id for reply in self.unfinished if reply.parent == self.head]
        return replace(
            self, head=waited[-1] if waited else self.head, messages=self.messages + self.unfinished, unfinished=()
        )  # fmt: skip

    def path(self) -> tuple[Message, ...]:
        """The messages from the first to the head, without the root."""
        by_id = {message.id: message for message in self.messages}
        found: list[Message] = []
        at = by_id.get(self.head)
        while at is not None and at.parent:
            found.append(at)
            at = by_id.get(at.parent)
        return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: the ids of the chats in their order, how many of them are new, and the new messages."""

    chats: tuple[str, ...]
    new_chats: int
    new_messages: int


def gather(database: Database, chat: str) -> ChatBundle:
    """The chat with everything it shows, in one snapshot."""
    with database.read() as connection:
        seq = tree.chat_seq(connection, chat)
        info = chat_at(connection, seq)
        rows = connection.execute(
            f"SELECT {MESSAGE_COLUMNS}, 1, 1 FROM members k JOIN messages m ON m.seq = k.message "
            "LEFT JOIN messages p ON p.seq = m.parent WHERE k.chat = ? AND k.hidden_at IS NULL ORDER BY m.seq",
            (seq,),
        )
        messages = tuple(to_message(row) for row in rows)
        marks = connection.execute(
            "SELECT hex(m.id), d.turns, d.created FROM dropped d JOIN messages m ON m.seq = d.first_kept "
            "WHERE d.chat = ? ORDER BY d.seq",
            (seq,),
        )
        running = running_in(connection, seq, database.owner.token)
        shown = {message.id for message in messages}
        dropped = tuple(
            Dropped(mark[0].lower(), mark[1], mark[2]) for mark in marks if mark[0].lower() in shown
        )
    return ChatBundle(
        id=info.id, title=info.title, title_by=info.title_by, pinned=info.pinned, created=info.created,
        updated=info.updated, settings=info.settings, head=info.head, messages=messages, dropped=dropped,
        unfinished=tuple(_unfinished(reply) for reply in running if reply.parent in shown and _written(reply)),
    )  # fmt: skip


def store(database: Database, bundles: Sequence[ChatBundle]) -> Imported:
    """Put all of `bundles` in, or none of them, in one transaction."""
    for bundle in bundles:
        validate(bundle)
    with database.write() as connection:
        before = _counts(connection)
        chats = tuple(_store(connection, bundle) for bundle in bundles)
        after = _counts(connection)
    return Imported(chats, after[0] - before[0], after[1] - before[1])


def validate(bundle: ChatBundle) -> None:
    """Raise ChatImportError unless every id is right, every parent comes first and every value is in its range."""
    where = f"The chat {bundle.title[:40]!r}"
    if not _CHAT_ID.fullmatch(bundle.id):
        raise ChatImportError(f"{where} has an id that is none: {bundle.id[:40]!r}.")
    if not bundle.messages or bundle.messages[0].role is not Role.ROOT:
        raise ChatImportError(f"{where} does not begin with its root. Export it again.")
    known: set[str] = set()
    for place, message in enumerate(bundle.messages):
        if (message.role is Role.ROOT) != (place == 0) or (message.parent not in known) != (place == 0):
            raise ChatImportError(
                f"{where}: message {place} comes before what it hangs from. Export it again."
            )
        if not _MESSAGE_ID.fullmatch(message.id) or not _NONCE.fullmatch(message.nonce):
            raise ChatImportError(f"{where}: message {place} has an id or a nonce that is none.")
        if storable(message.content) != message.content or storable(message.reasoning) != message.reasoning:
            raise ChatImportError(f"{where}: message {place} holds text that is not Unicode.")
        if message.expected_id() != message.id:
            raise ChatImportError(
                f"{where}: message {place} ({message.id[:12]}) does not match its id: the file was changed after it "
                "was exported. Export it again, or import it as Markdown."
            )
        _plain(message.params, f"{where}: the parameters of message {place}")
        _plain(message.metrics, f"{where}: the figures of message {place}")
        _finite(message.created, f"{where}: the time of message {place}")
        known.add(message.id)
    if bundle.head not in known or any(mark.first_kept not in known for mark in bundle.dropped):
        raise ChatImportError(f"{where} refers to a message that it does not hold. Export it again.")
    _finite(bundle.created, f"{where}: its time")
    _finite(bundle.updated, f"{where}: its time")
    _plain(bundle.settings, f"{where}: its settings")


def _store(connection: sqlite3.Connection, bundle: ChatBundle) -> str:
    seqs: dict[str, int] = {}
    for message in bundle.messages:
        row = connection.execute(
            "SELECT seq FROM messages WHERE id = ?", (tree.id_bytes(message.id),)
        ).fetchone()
        parent = seqs.get(message.parent)
        seqs[message.id] = (
            row[0] if row else insert_message(connection, message.id, parent, message.nonce, _new(message))
        )
    root, head = seqs[bundle.messages[0].id], seqs[bundle.head]
    found = connection.execute("SELECT seq, root, head FROM chats WHERE id = ?", (bundle.id,)).fetchone()
    if found and found[1] == root:
        chat, name, stand = found[0], bundle.id, found[2] in _path(bundle, seqs)
        connection.execute(
            "UPDATE chats SET deleted = NULL, updated = max(updated, ?) WHERE seq = ?", (bundle.updated, chat)
        )
    else:
        name, stand = bundle.id if not found else secrets.token_hex(8), True
        chat = _insert_chat(connection, name, bundle, root)
    connection.executemany(
        "INSERT INTO members (chat, message) VALUES (?, ?) "
        "ON CONFLICT (chat, message) DO UPDATE SET hidden_at = NULL, hidden_with = NULL",
        ((chat, seq) for seq in seqs.values()),
    )
    if stand and (not found or found[2] != head):  # a merge moves the chat on only along its own path
        tree.move_head(connection, chat, head)
    for mark in bundle.dropped:
        values = (chat, seqs[mark.first_kept], mark.turns, mark.created)
        connection.execute(
            "INSERT INTO dropped (chat, first_kept, turns, created) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 "
            "FROM dropped WHERE chat = ?1 AND first_kept = ?2 AND turns = ?3 AND created = ?4)",
            values,
        )
    return name


def _insert_chat(connection: sqlite3.Connection, name: str, bundle: ChatBundle, root: int) -> int:
    cursor = connection.execute(
        "INSERT INTO chats (id, title, title_by, pinned, created, updated, root, head, settings) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            name, storable(bundle.title), bundle.title_by.value, int(bundle.pinned), bundle.created, bundle.updated,
            root, root, as_json(bundle.settings),
        ),
    )  # fmt: skip
    return int(cursor.lastrowid or 0)


def _path(bundle: ChatBundle, seqs: Mapping[str, int]) -> set[int]:
    return {seqs[bundle.messages[0].id], *(seqs[message.id] for message in bundle.path())}


def _written(reply: Running) -> bool:
    return bool(reply.content or reply.reasoning)


def _unfinished(reply: Running) -> Message:
    """The text so far as a message; the reply's own name as nonce gives the same text the same id each time."""
    message = Message(
        id="", parent=reply.parent, role=Role.ASSISTANT, content=reply.content, reasoning=reply.reasoning,
        packed_ids=reply.packed_ids, nonce=reply.id, model=reply.model, params=reply.params,
        status=Status.INTERRUPTED, created=reply.started,
    )  # fmt: skip
    return replace(message, id=message.expected_id())


def _new(message: Message) -> NewMessage:
    return NewMessage(
        role=message.role, content=message.content, created=message.created, reasoning=message.reasoning,
        packed_ids=message.packed_ids, model=message.model, params=message.params, metrics=message.metrics,
        status=message.status, finish_reason=message.finish_reason, error=message.error,
    )  # fmt: skip


def _counts(connection: sqlite3.Connection) -> tuple[int, int]:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM chats), (SELECT count(*) FROM messages WHERE role <> 'root')"
    ).fetchone()
    return int(row[0]), int(row[1])


def _finite(value: float, what: str) -> None:
    if not math.isfinite(value) or not 0 <= value < 1e11:
        raise ChatImportError(f"{what} is {value}, which is no time in seconds since 1970.")


def _plain(value: object, what: str) -> None:
    """Refuse what nests deeper than we would read back."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for each in level
            for inner in (
                each.values() if isinstance(each, Mapping) else each if isinstance(each, list) else ()
            )
        ]
        if not level:
            return
    raise ChatImportError(f"{what} nest deeper than {MAX_DEPTH} levels.")
