"""A chat as Markdown: to read and to edit, and to come back as a new chat with the same texts."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.exchange.planting import Turn, plant
from nanochat.storage.records import Message, Role, Status

MARKDOWN_VERSION = 1

# A line that begins a message, its reasoning or its answer. In a text such a line is kept apart by a backslash.
_MARK = re.compile(r"#{2,3} (?P<name>[A-Z][a-z]+) <!-- nanochat(?: (?P<notes>.*))? -->\s*")
_MARK_IN_TEXT = re.compile(r"^(\\*)(?=#{2,3} [A-Z][a-z]+ <!-- nanochat)", re.MULTILINE)
_SET_APART = re.compile(r"^\\(\\*)(?=#{2,3} [A-Z][a-z]+ <!-- nanochat)", re.MULTILINE)


def to_markdown(bundle: ChatBundle) -> str:
    """The path that the chat stands on, with YAML front matter (each value is JSON, which YAML contains).

    A reply that is being written comes last, with its text so far, as an interrupted one.
    Each message begins with a heading that carries a comment; the text below it is exactly the message's.
    """
    front = {
        "nanochat": MARKDOWN_VERSION,
        "title": bundle.title,
        "created": iso_time(bundle.created),
        "updated": iso_time(bundle.updated),
        "settings": dict(bundle.settings),
    }
    lines = "".join(f"{key}: {_visible(value)}\n" for key, value in front.items())
    return f"---\n{lines}---\n\n" + "".join(map(_message_markdown, bundle.with_unfinished().path()))


def iso_time(seconds: float) -> str:
    """A time as `2026-01-31T12:00:00.123456Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def from_markdown(text: str) -> tuple[ChatBundle, ...]:
    """The one chat in our Markdown, as a new chat with new ids and one message after the other."""
    if text.startswith("---\r\n"):  # an editor changed the line ends
        text = text.replace("\r\n", "\n")
    front, end, body = text.removeprefix("---\n").partition("\n---\n")
    fields = {line.partition(":")[0]: line.partition(":")[2] for line in front.split("\n")}
    if not end or _scalar(fields.get("nanochat", "")) != MARKDOWN_VERSION:
        raise ChatImportError(
            f"The file has no front matter with `nanochat: {MARKDOWN_VERSION}`: it is no chat that nanochat exported."
        )
    created = _when(_scalar(fields.get("created", "")))
    settings, title = _scalar(fields.get("settings", "{}")), _scalar(fields.get("title", ""))
    turns = _turns(body, created)
    if not turns:
        raise ChatImportError(
            "The file holds no message; one begins with a line `## User <!-- nanochat -->`."
        )
    bundle = plant(
        secrets.token_hex(8), str(title), turns, head=len(turns) - 1, created=created,
        updated=_when(_scalar(fields.get("updated", ""))) or created,
        settings=cast(dict[str, Any], settings) if isinstance(settings, dict) else {},
    )  # fmt: skip
    return (bundle,)


def _message_markdown(message: Message) -> str:
    notes: dict[str, Any] = {"role": message.role.value, "created": message.created}
    if message.role is Role.ASSISTANT:
        notes |= {"model": message.model, "status": message.status.value}
    if message.status is Status.FAILED:
        notes["error"] = message.error
    text = f"## {message.role.value.title()} {_comment(notes)}\n\n"
    if message.reasoning:
        text += (
            f"### Reasoning {_comment()}\n\n{_set_apart(message.reasoning)}\n\n### Answer {_comment()}\n\n"
        )
    return text + _set_apart(message.content) + "\n\n"


def _comment(notes: Mapping[str, Any] | None = None) -> str:
    # A ">" in a value could end the comment.
    inside = " " + _visible(notes).replace(">", "\\u003e") if notes else ""
    return f"<!-- nanochat{inside} -->"


def _set_apart(text: str) -> str:
    return _MARK_IN_TEXT.sub(r"\1\\", text)


def _visible(value: object) -> str:
    """JSON on one line, with what does not print escaped; other scripts stay readable."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(
        each if each.isprintable() or ord(each) > 0xFFFF else f"\\u{ord(each):04x}" for each in text
    )


def _turns(body: str, created: float) -> list[Turn]:
    """The messages below the front matter, each hanging from the one before."""
    turns: list[Turn] = []
    parts: dict[str, list[str]] = {}
    notes: dict[str, Any] = {}

    def finish() -> None:
        if parts:
            turns.append(
                _turn(notes, {name: _text(lines) for name, lines in parts.items()}, len(turns) - 1, created)
            )

    lines: list[str] = []
    for line in body.split("\n"):
        mark = _MARK.fullmatch(line)
        if mark is None:
            lines.append(line)
            continue
        lines.append("")  # so that a part ends alike before a mark and at the end of the file
        name, lines = mark["name"].lower(), []
        if name in ("reasoning", "answer") and parts:
            parts[name] = lines
            continue
        finish()
        values = _scalar(mark["notes"] or "{}")
        notes = {"role": name} | (cast(dict[str, Any], values) if isinstance(values, dict) else {})
        parts = {"content": lines}
    finish()
    return turns


def _turn(notes: Mapping[str, Any], parts: Mapping[str, str], parent: int, created: float) -> Turn:
    try:
        role, status = Role(notes["role"]), Status(notes.get("status", Status.DONE))
    except ValueError as error:
        raise ChatImportError(f"Message {parent + 2} of the file: {error}.") from error
    if role is Role.ROOT:
        raise ChatImportError(
            f"Message {parent + 2} of the file has the role 'root', which is not a message's."
        )
    when = notes.get("created")
    return Turn(
        role=role, content=parts.get("answer", parts["content"]), reasoning=parts.get("reasoning", ""), status=status,
        model=str(notes.get("model", "")), error=str(notes.get("error", "")), parent=parent if parent >= 0 else None,
        created=float(when) if isinstance(when, (int, float)) else created,
    )  # fmt: skip


def _text(lines: list[str]) -> str:
    """A part's text: without the empty line under its heading and those that end it."""
    text = "\n".join(lines).removeprefix("\n")
    text = text.removesuffix("\n\n") if text.endswith("\n\n") else text.removesuffix("\n")
    return _SET_APART.sub(r"\1", text)


def _scalar(text: str) -> object:
    """A value of the front matter: JSON, else the plain text that it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()


def _when(value: object) -> float:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return 0.0
