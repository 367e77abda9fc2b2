"""From a chat in the history to the ids of a prompt, and which turns to drop when it is too long. Blocks."""

from __future__ import annotations

from nanochat.history import History
from nanochat.history_records import Running
from nanochat.ui.chat_model import ChatModel
from nanochat.ui.chat_settings import ChatSettings
from nanochat.ui.model_host import ReadyModel
from nanochat.ui.overflow import cuts, measure


def prompt_ids(
    history: History, language: ChatModel, running: Running, settings: ChatSettings, *, first: int = 0
) -> tuple[int, ...]:
    """The ids that ask for this reply: the messages in the context from number `first` on."""
    return language.prompt(
        history.messages.open(running.chat).in_context[first:], system_prompt=settings.system_prompt,
        thinking=settings.thinking, partial=running.token_ids,
    )  # fmt: skip


def drop_oldest(history: History, ready: ReadyModel, running: Running, settings: ChatSettings) -> bool:
    """Drop as few of the oldest turns as make the chat fit; False when even the last alone does not."""
    messages = history.messages.open(running.chat).in_context
    for first, turns in cuts(messages):
        ids = prompt_ids(history, ready.language, running, settings, first=first)
        if measure(len(ids), len(running.token_ids), ready.context) is None:
            history.messages.drop_before(running.chat, messages[first].id, turns)
            return True
    return False
