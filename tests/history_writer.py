"""What the tests run in processes of their own, to be killed at any moment: they write, and say what was taken."""

from __future__ import annotations

import os
import sqlite3
from multiprocessing.connection import Connection
from pathlib import Path

from nanochat.errors import NanochatError
from nanochat.history import History
from nanochat.storage.records import Role, Status
from nanochat.storage.schema import MIGRATIONS

PIECE = "naïve 漢字 🧠 "  # one, two, three and four bytes a character


def text_of(length: int) -> str:
    """The text that every reply grows along."""
    return (PIECE * (length // len(PIECE) + 1))[:length]


def write_until_killed(folder: Path, told: Connection) -> None:
    """Ask and answer for ever; each line that is sent names what was acknowledged just before."""
    history = History.open(folder)
    chat = history.chats.create().id
    told.send(("chat", chat))
    number = 0
    while True:
        number += 1
        question = history.messages.add(chat, Role.USER, f"{number} {PIECE}")
        told.send(("message", question.id))
        running = history.replies.begin(chat, question.id, model="tiny")
        told.send(("running", question.id, 0))
        for length in range(100, 2_000, 250):
            history.replies.checkpoint(running.id, text_of(length), token_ids=range(length))
            told.send(("running", question.id, length))
        reply = history.replies.finish(running.id, Status.DONE, text_of(2_000), token_ids=range(2_000))
        told.send(("message", reply.id))


def write_messages(folder: Path, name: str, count: int, told: Connection) -> None:
    """Open, wait for the word, write `count` messages into a chat of its own, and tell their ids."""
    with History.open(folder) as history:
        chat = history.chats.create(title=name).id
        told.send("ready")
        told.recv()
        told.send([history.messages.add(chat, Role.USER, f"{name} {number}").id for number in range(count)])


def hold_lock(folder: Path, told: Connection) -> None:
    """Hold the file's write lock until told to let go."""
    with History.open(folder) as history:
        with history.database.write():
            told.send("held")
            told.recv()
        told.send("released")
        told.recv()


# A second version of the schema, as a later nanochat could bring it; long enough to be killed in its middle.
NEXT = (
    *MIGRATIONS,
    (
        "CREATE TABLE filler AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000) "
        "SELECT i, randomblob(60) AS noise FROM n",
        "CREATE INDEX filler_noise ON filler (noise)",
        "DROP TABLE filler",
        "ALTER TABLE chats ADD COLUMN colour TEXT NOT NULL DEFAULT ''",
    ),
)


def migrate(folder: Path, told: Connection) -> None:
    """Open with the next version."""
    told.send("opening")
    with History.open(folder, migrations=NEXT):
        told.send("done")


def open_as_nobody(folder: Path, told: Connection) -> None:
    """Try to open as a user who may read the folder but not write to it; tell the error."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        History.open(folder).close()
        told.send("opened")
    except NanochatError as error:
        told.send((type(error).__name__, str(error)))
    except (OSError, sqlite3.Error) as error:
        told.send((type(error).__name__, f"raw: {error}"))
