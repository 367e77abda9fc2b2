"""What every open chat shares, and the few words that chats and screens have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from nanochat.storage.records import Message
from nanochat.ui.model_host import ModelHost
from nanochat.ui.overflow import Overflow

if TYPE_CHECKING:
    from nanochat.history import History
    from nanochat.ui.session import ChatSession


class TabState(StrEnum):
    """What a chat is doing, as its tab shows it."""

    IDLE = "idle"
    QUEUED = "waits for the model"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    STREAMING = "streaming"
    UNSEEN = "done, not seen"
    FAILED = "failed"


Choice = Literal["drop", "fork", "model"]
"""What to do about a chat that is longer than the context."""


@dataclass(frozen=True, slots=True)
class Summing:
    """A summary of a chat that is being written, and the message that goes on with it in a new one."""

    text: str
    task: asyncio.Task[str]


@dataclass(frozen=True, slots=True)
class Services:
    """What every chat shares. `ask_overflow` shows the chat and asks what to do when it does not fit."""

    history: History
    host: ModelHost
    ring: Callable[[], None]  # any thread may call: text has come
    notify: Callable[[str], None]
    changed: Callable[[ChatSession], None]
    ended: Callable[[ChatSession, Message | None], None]
    ask_overflow: Callable[[ChatSession, Overflow], Awaitable[Choice | None]]
    withdrawn: Callable[[ChatSession, str, Choice | None], None]  # a message that did not fit was taken back
    go_on: Callable[[ChatSession], None]  # the next message that waits may be sent
    give_back: Callable[[ChatSession], None]  # what waits is not to be sent
