"""From a chat in the history to the ids of a prompt, and which turns to drop when it is too long. Blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.storage.records import Conversation, Role, Running
from nanochat.ui.chat_model import Asked, ChatModel
from nanochat.ui.chat_settings import ChatSettings

if TYPE_CHECKING:
    from nanochat.history import History


def ask(history: History, language: ChatModel, running: Running, settings: ChatSettings) -> Asked:
    """What asks for this reply."""
    records = history.messages.open(running.chat)
    return language.prompt(
        records.in_context, system_prompt=settings.system_prompt, thinking=settings.thinking,
        started=records.chat.created, partial=running.token_ids,
    )  # fmt: skip


def last_fits(
    history: History, language: ChatModel, running: Running, settings: ChatSettings, limit: int
) -> bool:
    """Whether the chat fits once enough of its oldest turns are dropped."""
    return bool(_first_kept(history.messages.open(running.chat), language, running, settings, limit))


def drop_oldest(
    history: History, language: ChatModel, running: Running, settings: ChatSettings, limit: int
) -> bool:
    """Drop as few of the oldest turns as make the chat fit; False when even the last alone does not."""
    records = history.messages.open(running.chat)
    first = _first_kept(records, language, running, settings, limit)
    if not first:
        return False
    messages = records.in_context
    turns = sum(message.role is Role.USER for message in messages[:first])
    history.messages.drop_before(running.chat, messages[first].id, turns)
    return True


def _first_kept(
    records: Conversation, language: ChatModel, running: Running, settings: ChatSettings, limit: int
) -> int | None:
    return language.first_kept(
        records.in_context, limit - len(running.token_ids), system_prompt=settings.system_prompt,
        thinking=settings.thinking, started=records.chat.created,
    )  # fmt: skip
