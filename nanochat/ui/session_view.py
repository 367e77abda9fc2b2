"""Records of the history as the transcript shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nanochat.storage.records import Conversation as Records
from nanochat.storage.records import Message, Role, Running, Status
from nanochat.ui import figures
from nanochat.ui.conversation import Status as ViewStatus
from nanochat.ui.conversation import TranscriptMessage

DROPPED = "the model no longer reads what is above"
_STATUS: dict[Status, ViewStatus] = {
    Status.DONE: "done",
    Status.STOPPED: "stopped",
    Status.FAILED: "failed",
    Status.INTERRUPTED: "interrupted",
}


def view(record: Message, *, dropped: bool = False) -> TranscriptMessage:
    """One message."""
    return TranscriptMessage(
        id=record.id,
        role="user"
        if record.role is Role.USER
        else "assistant"
        if record.role is Role.ASSISTANT
        else "notice",
        text=record.content,
        reasoning=record.reasoning,
        status=_STATUS[record.status],
        footer=footer(record),
        error=record.error,
        variant=record.variant,
        variants=record.variants,
        reasoning_seconds=record.figures.get("reasoning_seconds"),
        dropped=dropped,
    )


def views(records: Records) -> Iterable[TranscriptMessage]:
    """All messages of a chat, with those that the model no longer sees marked, and what another process writes."""
    kept = {message.id for message in records.in_context}
    dropped = [message for message in records.messages if message.id not in kept]
    for message in dropped[:-1]:
        yield view(message, dropped=True)
    for message in dropped[-1:]:
        yield replace(
            view(message, dropped=True), footer=" · ".join(filter(None, (footer(message), DROPPED)))
        )
    for message in records.in_context:
        yield view(message)
    head = records.chat.head
    for running in records.running:
        if not running.mine and running.parent == head:
            yield foreign(running)


def foreign(running: Running) -> TranscriptMessage:
    """A reply that another nanochat is writing into this chat."""
    return TranscriptMessage(
        id=running.id, role="assistant", text=running.content, reasoning=running.reasoning, status="done",
        footer="another nanochat is writing this reply",
    )  # fmt: skip


def footer(record: Message) -> str:
    """The line under a reply; nothing under what the user wrote."""
    return figures.footer(record.figures, ended=ending(record)) if record.role is Role.ASSISTANT else ""


def ending(record: Message) -> str:
    """A word for how a reply ended, when it was not the model's own end."""
    if record.status is Status.STOPPED:
        return "stopped"
    if record.status is Status.INTERRUPTED:
        return "interrupted · /continue or /retry"
    if record.status is Status.FAILED:
        return "failed"
    return "cut at its longest · /continue" if record.finish_reason == "length" else ""


def tokens_in(messages: Sequence[Message]) -> int:
    """Tokens of the chat as far as its last reply, as the engine counted them."""
    last = next((record for record in reversed(messages) if record.figures.get("prompt_tokens")), None)
    return (
        0 if last is None else int(last.figures["prompt_tokens"]) + int(last.figures.get("output_tokens", 0))
    )


def counted(messages: Sequence[Message]) -> bool:
    """Whether the engine counted the chat to its end: not so where a crash or an import left the last reply."""
    return not messages or bool(messages[-1].figures.get("prompt_tokens"))
