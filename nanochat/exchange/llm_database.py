"""The database of the `llm` command line tool: `conversations` and `responses`, each a question and its answer."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.planting import Turn, chat_id, plant
from nanochat.storage.records import Role

MAX_TEXT_BYTES = 64 << 20
MAX_RESPONSES = 1_000_000
MAX_SECONDS = 120.0
_NEEDED = {"id", "prompt", "response", "conversation_id"}
_WANTED = (
    *sorted(_NEEDED),
    "model",
    "system",
    "options_json",
    "datetime_utc",
    "input_tokens",
    "output_tokens",
)


def from_llm(path: Path) -> tuple[ChatBundle, ...]:
    """The conversations in llm's logs.db, read only; ids are the same whenever it is imported again.

    Reads what llm wrote up to 0.31 (and writes no more, but keeps, from 0.32 on). Tools, attachments and fragments are
    left out. Raises ChatImportError for a damaged file or another program's.
    """
    try:
        with closing(_connect(path)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise ChatImportError(
                    f"The database {path} is damaged. Take a backup of it, or `llm logs backup`."
                )
            columns = _columns(connection, "responses")
            if not columns >= _NEEDED:
                raise ChatImportError(f"{path} is a database, but not llm's: it has no table of responses.")
            names = _names(connection)
            return tuple(_chats(connection, columns, names))
    except sqlite3.Error as error:
        raise ChatImportError(f"The database {path} cannot be read: {error}.") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None
    )
    # The file is from outside: nothing in its schema may call functions, and no query may run for ever.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT_BYTES)
    until = time.monotonic() + MAX_SECONDS
    connection.set_progress_handler(lambda: int(time.monotonic() > until), 100_000)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a plain table; none for a view or a virtual table."""
    row = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchone()
    if row is None or not str(row[0]).upper().startswith("CREATE TABLE"):
        return set()
    return {str(each[1]) for each in connection.execute(f"PRAGMA table_info({table})")}


def _names(connection: sqlite3.Connection) -> dict[str, str]:
    if not _columns(connection, "conversations") >= {"id", "name"}:
        return {}
    rows = connection.execute("SELECT id, name FROM conversations LIMIT ?", (MAX_RESPONSES,))
    return {_text(row[0]): _text(row[1]) for row in rows}


def _chats(
    connection: sqlite3.Connection, columns: set[str], names: Mapping[str, str]
) -> Iterator[ChatBundle]:
    wanted = [name for name in _WANTED if name in columns]
    order = "datetime_utc, id" if "datetime_utc" in columns else "id"
    chats: dict[str, list[dict[str, Any]]] = {}
    rows = connection.execute(f"SELECT {', '.join(wanted)} FROM responses ORDER BY {order}")
    for number, row in enumerate(rows):
        if number >= MAX_RESPONSES:
            raise ChatImportError(f"The database holds more than {MAX_RESPONSES:,} responses.")
        values = dict(zip(wanted, row, strict=True))
        chats.setdefault(_text(values["conversation_id"]) or _text(values["id"]), []).append(values)
    for name, responses in chats.items():
        yield _chat(name, names.get(name, ""), responses)


def _chat(name: str, title: str, responses: Sequence[Mapping[str, Any]]) -> ChatBundle:
    turns: list[Turn] = []
    for response in responses:
        when = _time(response.get("datetime_utc"))
        above = len(turns) - 1 if turns else None
        key = _text(response["id"])
        turns.append(
            Turn(
                role=Role.USER,
                content=_text(response["prompt"]),
                parent=above,
                created=when,
                key=f"{key} prompt",
            )
        )
        turns.append(
            Turn(
                role=Role.ASSISTANT, content=_text(response["response"]), parent=len(turns) - 1, created=when,
                key=f"{key} response", model=_text(response.get("model")),
                params=_options(response.get("options_json")),
                metrics=_metrics(response),
            )
        )  # fmt: skip
    system = next((_text(each.get("system")) for each in responses if each.get("system")), "")
    return plant(
        chat_id("llm", name), title, turns, head=len(turns) - 1, created=turns[0].created, updated=turns[-1].created,
        settings={"system_prompt": system} if system else {}, key=f"llm {name}",
    )  # fmt: skip


def _metrics(response: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"prompt_tokens": response.get("input_tokens"), "output_tokens": response.get("output_tokens")}
    return {name: value for name, value in counts.items() if isinstance(value, int)}


def _options(value: object) -> dict[str, Any]:
    try:
        options = json.loads(value) if isinstance(value, str) else {}
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], options) if isinstance(options, dict) else {}


def _text(value: object) -> str:
    return (
        value if isinstance(value, str) else "" if value is None or isinstance(value, bytes) else str(value)
    )


def _time(value: object) -> float:
    try:
        when = datetime.fromisoformat(str(value))
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return max(0.0, seconds)
