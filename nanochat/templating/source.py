"""Where a model's chat template is on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from nanochat.errors import InvalidTemplate

_MAX_BYTES = 64 * 2**20  # of a tokenizer_config.json


def read_template(folder: Path) -> str:
    """The Jinja text of the model in `folder`: chat_template.jinja, else what the JSON files hold.

    Raises:
        InvalidTemplate: there is none, or its file is damaged.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read(file)
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = folder / name
        found = _load(file).get("chat_template") if file.is_file() else None
        if isinstance(found, list):
            found = _default(cast("list[Any]", found), file)
        if isinstance(found, dict):
            found = cast("dict[str, Any]", found).get("default")
        if isinstance(found, str) and found:
            return found
        if found:
            raise InvalidTemplate(f"{file} has a chat_template that is a {type(found).__name__}, not a text.")
    raise InvalidTemplate(
        f"{folder.name} has no chat template, so it is probably a base model that was not taught to chat. Take its "
        f"instruct version (names end in -Instruct, -it or -Chat), or put a chat_template.jinja into {folder}."
    )


def read_tool_template(folder: Path) -> str | None:
    """The template that a model has beside its own for chats with tools; most have none, since theirs does both.

    Raises:
        InvalidTemplate: its file is damaged.
    """
    file = folder / "additional_chat_templates" / "tool_use.jinja"
    if file.is_file():
        return _read(file)
    if (folder / "chat_template.jinja").is_file():
        return None
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = folder / name
        found = _load(file).get("chat_template") if file.is_file() else None
        named = _named(cast("list[Any]", found)) if isinstance(found, list) else found
        if found:
            source = cast("dict[str, Any]", named).get("tool_use") if isinstance(named, dict) else None
            return source if isinstance(source, str) else None
    return None


def _named(entries: list[Any]) -> dict[str, Any]:
    pairs = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
    return {str(pair.get("name")): pair.get("template") for pair in pairs}


def _default(entries: list[Any], file: Path) -> str | None:
    """Of several named templates the one for plain chats."""
    named = _named(entries)
    if "default" in named:
        return named["default"]
    if len(named) == 1:
        return next(iter(named.values()))
    known = ", ".join(map(str, named)) or "none"
    raise InvalidTemplate(
        f"{file} has no chat template named default (it has: {known}); put one into chat_template.jinja."
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise InvalidTemplate(f"{file} is damaged: {error}. Fetch the model again.") from error
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InvalidTemplate(
                f"{file} is {file.stat().st_size:,} bytes; at most {_MAX_BYTES:,} are read."
            )
        return file.read_bytes().decode("utf-8")  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTemplate(f"{file} cannot be read: {error}") from error
