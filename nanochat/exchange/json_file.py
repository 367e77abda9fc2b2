"""Chats as JSON: everything in them, out and back in with the same ids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from nanochat.errors import ChatImportError
from nanochat.exchange.bundle import ChatBundle
from nanochat.storage.records import Dropped, Message, Role, Status, TitleBy, pack_ids

JSON_FORMAT = "nanochat chats"
JSON_VERSION = 1
_Enum = TypeVar("_Enum", Role, Status, TitleBy)


def to_json(bundles: Iterable[ChatBundle], *, ascii_only: bool = False) -> str:
    """Chats with their whole trees; a line a message. Import gives the same ids. Replies that are being written are
    there with their text so far, as interrupted ones.

    `{"format": "nanochat chats", "version": 1, "chats": [{..., "messages": [{"id", "parent", "role", ...}]}]}`
    Times are seconds since 1970; `token_ids` are the model's. A message's id is `history_records.message_id` of it.
    """
    chats = [_chat_json(bundle.with_unfinished(), ascii_only) for bundle in bundles]
    head = f'{{"format": "{JSON_FORMAT}", "version": {JSON_VERSION}, "chats": ['
    return head + "\n" + ",\n".join(chats) + "\n]}\n"


def from_json(data: Mapping[str, Any]) -> tuple[ChatBundle, ...]:
    """The chats in our JSON. Ids are checked when they are stored."""
    version = data.get("version")
    if not isinstance(version, int) or version < 1:
        raise ChatImportError("The file does not say which version of the export it is.")
    if version > JSON_VERSION:
        raise ChatImportError(
            f"The file was exported by a newer nanochat (version {version}; this one reads up to {JSON_VERSION}). "
            "Update nanochat."
        )
    return tuple(
        _chat(_Fields(each, f"chat {place}"))
        for place, each in enumerate(_Fields(data, "file").list("chats"))
    )


def _chat_json(bundle: ChatBundle, ascii_only: bool) -> str:
    def dumped(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)

    notes = {
        "id": bundle.id, "title": bundle.title, "title_by": bundle.title_by.value, "pinned": bundle.pinned,
        "created": bundle.created, "updated": bundle.updated, "settings": dict(bundle.settings), "head": bundle.head,
        "dropped": [
            {"first_kept": mark.first_kept, "turns": mark.turns, "created": mark.created} for mark in bundle.dropped
        ],
    }  # fmt: skip
    messages = ",\n".join(dumped(_message_json(message)) for message in bundle.messages)
    return f'{dumped(notes)[:-1]}, "messages": [\n{messages}\n]}}'


def _message_json(message: Message) -> dict[str, Any]:
    return {
        "id": message.id, "parent": message.parent or None, "role": message.role.value, "content": message.content,
        "reasoning": message.reasoning, "token_ids": list(message.token_ids), "nonce": message.nonce,
        "model": message.model, "params": dict(message.params), "metrics": dict(message.metrics),
        "status": message.status.value, "finish_reason": message.finish_reason, "error": message.error,
        "created": message.created,
    }  # fmt: skip


def _chat(fields: _Fields) -> ChatBundle:
    return ChatBundle(
        id=fields.text("id"), title=fields.text("title"), title_by=fields.one_of("title_by", TitleBy),
        pinned=fields.get("pinned") is True, created=fields.number("created"), updated=fields.number("updated"),
        settings=fields.mapping("settings"), head=fields.text("head"),
        messages=tuple(
            _message(_Fields(each, f"{fields.where}, message {place}"))
            for place, each in enumerate(fields.list("messages"))
        ),
        dropped=tuple(
            Dropped(mark.text("first_kept"), mark.integer("turns"), mark.number("created"))
            for mark in (_Fields(each, f"{fields.where}, a dropped turn") for each in fields.list("dropped"))
        ),
    )  # fmt: skip


def _message(fields: _Fields) -> Message:
    return Message(
        id=fields.text("id"), parent=fields.text("parent") if fields.get("parent") is not None else "",
        role=fields.one_of("role", Role), content=fields.text("content"), reasoning=fields.text("reasoning"),
        packed_ids=fields.token_ids("token_ids"), nonce=fields.text("nonce"), model=fields.text("model"),
        params=fields.mapping("params"), metrics=fields.mapping("metrics"), status=fields.one_of("status", Status),
        finish_reason=fields.text("finish_reason"), error=fields.text("error"), created=fields.number("created"),
    )  # fmt: skip


class _Fields:
    """A JSON object whose values must have their types."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise ChatImportError(f"In the file, {where} is not an object. Export it again.")
        self._values, self.where = cast(Mapping[str, Any], value), where

    def get(self, name: str) -> object:
        return self._values.get(name)

    def text(self, name: str) -> str:
        return self._typed(name, str)

    def integer(self, name: str) -> int:
        value = self._typed(name, int)
        if not 0 <= value < 2**53:
            raise self._wrong(name)
        return value

    def number(self, name: str) -> float:
        value = self._values.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or abs(value) > 1e300
            or math.isnan(value)
        ):
            raise self._wrong(name)
        return float(value)

    def list(self, name: str) -> list[object]:
        return self._typed(name, list)

    def mapping(self, name: str) -> dict[str, Any]:
        return self._typed(name, dict)

    def token_ids(self, name: str) -> bytes:
        try:
            return pack_ids([_token(each) for each in self.list(name)])
        except (TypeError, OverflowError) as error:
            raise self._wrong(name) from error

    def one_of(self, name: str, kind: type[_Enum]) -> _Enum:
        try:
            return kind(self.text(name))
        except ValueError as error:
            raise self._wrong(name) from error

    def _typed(self, name: str, kind: type[Any]) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong(name)
        return value

    def _wrong(self, name: str) -> ChatImportError:
        return ChatImportError(
            f"In the file, {self.where} has no valid {name!r}: {str(self.get(name))[:40]!r}."
        )


def _token(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is no token id")
    return value
