"""What a transcript shows of one chat: messages as frozen dataclasses, and the text that streams into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

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


class Conversation:
    """The messages of one chat, in order; a `Transcript` is a view onto it.

    One for each chat, shown or hidden. Changing a hidden one costs the screen nothing: text is kept in
    pieces and read when it is shown. All methods belong to the screen's thread.
    """

    def __init__(self, chat_id: str, messages: Iterable[TranscriptMessage] = ()) -> None:
        self.chat_id = chat_id
        self.on_change: Callable[[str | None], None] | None = None
        self._messages: dict[str, TranscriptMessage] = {}
        self._pieces: dict[str, tuple[list[str], list[str]]] = {}
        self.replace_all(messages)

    @property
    def messages(self) -> tuple[TranscriptMessage, ...]:
        """All messages, with the text that has streamed in so far."""
        return tuple(self.get(message_id) for message_id in self._messages)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all messages, in order."""
        return tuple(self._messages)

    def get(self, message_id: str) -> TranscriptMessage:
        """The message of this id, with the text that has streamed in so far. KeyError when there is none."""
        message = self._messages[message_id]
        pieces = self._pieces.pop(message_id, None)
        if pieces is not None:
            text, reasoning = pieces
            message = replace(
                message, text=message.text + "".join(text), reasoning=message.reasoning + "".join(reasoning)
            )
            self._messages[message_id] = message
        return message

    def replace_all(self, messages: Iterable[TranscriptMessage]) -> None:
        """Show these messages from now on; what is drawn of an equal one is kept."""
        self._messages = {message.id: message for message in messages}
        self._pieces.clear()
        self._changed(None)

    def append(self, message: TranscriptMessage) -> None:
        """Add a message at the end."""
        self._messages[message.id] = message
        self._changed(None)

    def update(self, message: TranscriptMessage) -> None:
        """Put this message in the place of the one with its id; KeyError when there is none."""
        self.get(message.id)
        self._messages[message.id] = message
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
        given = {
            "status": status,
            "footer": footer,
            "error": error,
            "variant": variant,
            "variants": variants,
            "reasoning_seconds": reasoning_seconds,
            "dropped": dropped,
        }
        self.update(
            replace(
                self.get(message_id), **{name: value for name, value in given.items() if value is not None}
            )
        )

    def write(self, message_id: str, text: str = "", reasoning: str = "") -> None:
        """Append a piece of a reply, cut anywhere; KeyError when there is no such message."""
        if message_id not in self._messages:
            raise KeyError(message_id)
        pieces = self._pieces.setdefault(message_id, ([], []))
        if text:
            pieces[0].append(text)
        if reasoning:
            pieces[1].append(reasoning)
        self._changed(message_id)

    def remove(self, message_id: str) -> None:
        """Take a message out of view; KeyError when there is none."""
        del self._messages[message_id]
        self._pieces.pop(message_id, None)
        self._changed(None)

    def _changed(self, message_id: str | None) -> None:
        if self.on_change is not None:
            self.on_change(message_id)
