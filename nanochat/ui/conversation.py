"""What a transcript shows of one chat: messages as frozen dataclasses, and the text that streams into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from nanochat.sanitize import sanitize, sanitize_line

Role = Literal["user", "assistant", "notice"]
Status = Literal["queued", "waiting", "prefilling", "streaming", "done", "stopped", "interrupted", "failed"]

#: A message in one of these is not finished: more text may come.
OPEN_STATUSES: frozenset[Status] = frozenset(("queued", "waiting", "prefilling", "streaming"))


@dataclass(frozen=True, slots=True)
class TranscriptMessage:
    """One message as the transcript shows it.

    `id` names it within its chat (the history's id, or any string that is unique there). `footer` is the one
    dim line under a reply (`143 tok/s · 512 tok · TTFT 0.21 s · reused 97 % · stopped`); while nothing has come
    yet it is the place for progress (`prefill 3.1k/9.8k`). `error` says why a reply failed. `variant` of
    `variants` counts from 1. `dropped` marks a turn that the model no longer sees.
    """

    id: str
    role: Role
    text: str = ""
    reasoning: str = ""
    status: Status = "done"
    footer: str = ""
    error: str = ""
    variant: int = 1
    variants: int = 1
    reasoning_seconds: float | None = None
    dropped: bool = False

    @property
    def open(self) -> bool:
        """Whether more text may come."""
        return self.status in OPEN_STATUSES


@dataclass(slots=True)
class _Growth:
    """What has streamed into a message: all of it, and how much of it a reader has taken."""

    text: list[str]
    reasoning: list[str]
    text_taken: int = 0
    reasoning_taken: int = 0


class Conversation:
    """The messages of one chat, in order; a `Transcript` is a view onto it.

    One for each chat, shown or hidden. Changing a hidden one costs the screen nothing: text is kept in
    pieces and read when it is shown. Everything passes `sanitize()` on its way in. All methods belong to the
    screen's thread.
    """

    def __init__(self, chat_id: str, messages: Iterable[TranscriptMessage] = ()) -> None:
        self.chat_id = chat_id
        self.on_change: Callable[[str | None], None] | None = None
        self.kept_view: object | None = (
            None  # what the transcript has drawn of it, for when it is shown again
        )
        self._messages: dict[str, TranscriptMessage] = {}
        self._growth: dict[str, _Growth] = {}
        self._keys: dict[str, int] = {}
        self._serial = 0
        self.replace_all(messages)

    @property
    def messages(self) -> tuple[TranscriptMessage, ...]:
        """All messages, with the text that has streamed in so far."""
        return tuple(self.get(message_id) for message_id in self._messages)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all messages, in order."""
        return tuple(self._messages)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._messages

    def get(self, message_id: str) -> TranscriptMessage:
        """The message of this id, with the text that has streamed in so far. KeyError when there is none."""
        message = self._messages[message_id]
        growth = self._growth.get(message_id)
        if growth is None:
            return message
        return replace(
            message,
            text=message.text + "".join(growth.text),
            reasoning=message.reasoning + "".join(growth.reasoning),
        )

    def state(self, message_id: str) -> TranscriptMessage:
        """The message without the text that has streamed in: what stands around it. KeyError when there is none."""
        return self._messages[message_id]

    def key(self, message_id: str) -> int:
        """What a view of this message is kept under: a new one when its text was replaced, not added to."""
        return self._keys[message_id]

    def take(self, message_id: str) -> tuple[str, str]:
        """Text and reasoning that were added since the last `take`; for the one view of this message."""
        growth = self._growth.get(message_id)
        if growth is None:
            return "", ""
        text = "".join(growth.text[growth.text_taken :])
        reasoning = "".join(growth.reasoning[growth.reasoning_taken :])
        growth.text_taken, growth.reasoning_taken = len(growth.text), len(growth.reasoning)
        return text, reasoning

    def replace_all(self, messages: Iterable[TranscriptMessage]) -> None:
        """Show these messages from now on; what is drawn of those that stay the same is kept."""
        before, growth = self._messages, self._growth
        self._messages, self._growth = {}, {}
        for message in map(_clean, messages):
            if message.id in before:
                self._messages[message.id] = before[message.id]
                if message.id in growth:
                    self._growth[message.id] = growth[message.id]
                self._put(message)
            else:
                self._add(message)
        self._changed(None)

    def append(self, message: TranscriptMessage) -> None:
        """Add a message at the end. ValueError when its id is taken."""
        if message.id in self._messages:
            raise ValueError(f"message {message.id!r} is already in chat {self.chat_id!r}")
        self._add(_clean(message))
        self._changed(None)

    def update(self, message: TranscriptMessage) -> None:
        """Put this message in the place of the one with its id; KeyError when there is none."""
        self._put(_clean(message))
        self._changed(message.id)

    def change(
        self,
        message_id: str,
        *,
        status: Status | None = None,
        footer: str | None = None,
        error: str | None = None,
        variant: int | None = None,
        variants: int | None = None,
        reasoning_seconds: float | None = None,
        dropped: bool | None = None,
    ) -> None:
        """Change what stands around a message's text; None leaves a field as it is."""
        message = self._messages[message_id]
        changed = _clean(
            replace(
                message,
                status=message.status if status is None else status,
                footer=message.footer if footer is None else footer,
                error=message.error if error is None else error,
                variant=message.variant if variant is None else variant,
                variants=message.variants if variants is None else variants,
                reasoning_seconds=message.reasoning_seconds
                if reasoning_seconds is None
                else reasoning_seconds,
                dropped=message.dropped if dropped is None else dropped,
            )
        )
        if changed != message:
            self._messages[message_id] = changed
            self._changed(message_id)

    def write(self, message_id: str, text: str = "", reasoning: str = "") -> None:
        """Append a piece of a reply, cut anywhere; KeyError when there is no such message."""
        if message_id not in self._messages:
            raise KeyError(message_id)
        if text or reasoning:
            self._grow(message_id, sanitize(text), sanitize(reasoning))
            self._changed(message_id)

    def rename(self, message_id: str, new_id: str) -> None:
        """Give a message another id; what is drawn of it is kept. KeyError, ValueError when the new one is taken."""
        if new_id in self._messages:
            raise ValueError(f"message {new_id!r} is already in chat {self.chat_id!r}")
        self._messages = {
            new_id if name == message_id else name: replace(message, id=new_id)
            if name == message_id
            else message
            for name, message in self._messages.items()
        }
        self._keys[new_id] = self._keys.pop(message_id)
        if message_id in self._growth:
            self._growth[new_id] = self._growth.pop(message_id)
        self._changed(None)

    def remove(self, message_id: str) -> None:
        """Take a message out of view; KeyError when there is none."""
        del self._messages[message_id]
        self._growth.pop(message_id, None)
        self._changed(None)

    def _add(self, message: TranscriptMessage) -> None:
        self._serial += 1
        self._keys[message.id] = self._serial
        self._messages[message.id] = message

    def _put(self, message: TranscriptMessage) -> None:
        now = self.get(message.id)
        added = message.text.startswith(now.text) and message.reasoning.startswith(now.reasoning)
        if added and (message.role == "assistant" or message.text == now.text):
            base = self._messages[message.id]
            self._messages[message.id] = replace(message, text=base.text, reasoning=base.reasoning)
            self._grow(message.id, message.text[len(now.text) :], message.reasoning[len(now.reasoning) :])
        else:
            self._growth.pop(message.id, None)
            self._add(message)

    def _grow(self, message_id: str, text: str, reasoning: str) -> None:
        if not text and not reasoning:
            return
        growth = self._growth.setdefault(message_id, _Growth([], []))
        if text:
            growth.text.append(text)
        if reasoning:
            growth.reasoning.append(reasoning)

    def _changed(self, message_id: str | None) -> None:
        if self.on_change is not None:
            self.on_change(message_id)


def _clean(message: TranscriptMessage) -> TranscriptMessage:
    return replace(
        message,
        text=sanitize(message.text),
        reasoning=sanitize(message.reasoning),
        footer=sanitize_line(message.footer),
        error=sanitize(message.error),
    )
