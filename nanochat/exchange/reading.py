"""Files of chats read back: our JSON and Markdown, ChatGPT's export and llm's database; damaged ones are refused whole.

Everything here is text from outside: sizes are bounded, every value is checked, and nothing is written to a history
before the whole file has been read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.chatgpt import from_chatgpt
from nanochat.exchange.json_file import JSON_FORMAT, from_json
from nanochat.exchange.llm_database import from_llm
from nanochat.exchange.markdown_file import MARKDOWN_VERSION, from_markdown

MAX_FILE_BYTES = 256 << 20
_SQLITE = b"SQLite format 3\0"
_MARKDOWN = (".md", ".markdown")
_ZIP = b"PK\x03\x04"


def read_chats(path: Path) -> tuple[ChatBundle, ...]:
    """The chats in a file of any kind that we know, told apart by what is in it.

    Raises ChatImportError when it is none of them, is damaged, or is larger than 256 MiB.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ChatImportError(f"{path} is not a file.")
        if size > MAX_FILE_BYTES:
            raise ChatImportError(
                f"{path} has {size / 1e6:,.0f} MB; at most {MAX_FILE_BYTES >> 20} MiB are read."
            )
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
        if start == _SQLITE:
            return from_llm(path)
        if start.startswith(_ZIP):
            raise ChatImportError(
                f"{path} is a zip archive. Unpack it and import the conversations.json inside."
            )
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise ChatImportError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ChatImportError(
            f"{path} is not text in UTF-8: byte {error.start} is {error.object[error.start]:#x}."
        ) from error
    if text.startswith("---"):
        return from_markdown(text)
    try:
        return from_json_text(text)
    except ChatImportError as error:
        if path.suffix.lower() not in _MARKDOWN:
            raise
        raise ChatImportError(
            f"{path} is no Markdown that nanochat exported: that begins with front matter, `---` and `nanochat: {MARKDOWN_VERSION}`."
        ) from error


def from_json_text(text: str) -> tuple[ChatBundle, ...]:
    """The chats in the text of our JSON or of ChatGPT's conversations.json."""
    try:
        data: object = json.loads(text)
    except RecursionError as error:
        raise ChatImportError("The file nests too deeply to be an export of chats.") from error
    except ValueError as error:
        raise ChatImportError(f"The file is not whole JSON: {error}. Export or download it again.") from error
    if isinstance(data, dict) and data.get("format") == JSON_FORMAT:
        return from_json(data)
    if isinstance(data, dict) and "mapping" in data:
        return from_chatgpt([data])
    if isinstance(data, list) and (
        not data or all(isinstance(each, dict) and "mapping" in each for each in data)
    ):
        return from_chatgpt(cast(list[dict[str, Any]], data))
    raise ChatImportError(
        "The file is no export of chats that nanochat knows: its own JSON or Markdown, ChatGPT's conversations.json, "
        "or the database of llm."
    )
