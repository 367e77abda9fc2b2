"""Turns from another program, planted as a tree of ours: names, a root, and the same ones whenever it is done again."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nanochat.exchange.bundle import ChatBundle
from nanochat.storage.records import NONCE_BYTES, Message, Role, Status, TitleBy, storable
from nanochat.storage.tree import ROOT_NONCE_BYTES, first_title


@dataclass(slots=True, kw_only=True)
class Turn:
    """One message of another program; `parent` is its place in the list of turns, `None` for a first one.

    `key` is what that program calls it: two imports of the same export then give the same ids.
    """

    role: Role
    content: str
    parent: int | None
    created: float
    reasoning: str = ""
    model: str = ""
    status: Status = Status.DONE
    error: str = ""
    key: str = ""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])


def plant(
    chat: str, title: str, turns: Sequence[Turn], *, head: int, created: float, updated: float,
    settings: Mapping[str, Any] | None = None, key: str = "",
) -> ChatBundle:  # fmt: skip
    """A chat of `turns`, each after its parent, that stands at `turns[head]`. `key` as in `Turn`."""
    nonce = _nonce(key, ROOT_NONCE_BYTES)
    root = Message(id="", parent="", role=Role.ROOT, content="", nonce=nonce, created=created)
    messages = [_named(root)]
    for turn in turns:
        above = messages[0 if turn.parent is None else turn.parent + 1]
        message = Message(
            id="", parent=above.id, role=turn.role, content=storable(turn.content),
            reasoning=storable(turn.reasoning), nonce=_nonce(turn.key and f"{key} {turn.key}", NONCE_BYTES),
            model=turn.model, params=turn.params, metrics=turn.metrics, status=turn.status, error=turn.error,
            created=turn.created,
        )  # fmt: skip
        messages.append(_named(message))
    first = next((turn.content for turn in turns if turn.role is Role.USER), "")
    name = storable(title) or first_title(storable(first))
    by = TitleBy.AUTO if title else TitleBy.FIRST if name else TitleBy.NONE
    return ChatBundle(
        id=chat, title=name, title_by=by, created=created, updated=updated, head=messages[head + 1].id,
        messages=tuple(messages), settings=settings or {},
    )  # fmt: skip


def chat_id(program: str, name: str) -> str:
    """The id of a chat that another program calls `name`."""
    return hashlib.sha256(f"{program} {name}".encode()).hexdigest()[:16]


def _nonce(key: str, size: int) -> str:
    return hashlib.sha256(storable(key).encode()).hexdigest()[: 2 * size] if key else secrets.token_hex(size)


def _named(message: Message) -> Message:
    return replace(message, id=message.expected_id())
