"""The block cursor: which message, reasoning or code block is selected, and what its neighbours are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nanochat.ui.conversation_view import ConversationView


@dataclass(frozen=True, slots=True)
class BlockCursor:
    """What is selected: a message, its reasoning, or the fence in it that `key` names."""

    message_id: str
    what: Literal["message", "code", "reasoning"] = "message"
    key: str = ""

    def span(self, view: ConversationView) -> tuple[int, int]:
        """The first row that is selected, and the row after the last; nothing when the message is gone."""
        if self.message_id not in view:
            return 0, 0
        first, end = view.span(self.message_id)
        for stop in view.view(self.message_id).stops():
            if (stop.what, stop.key) == (self.what, self.key):
                return first + stop.top, first + stop.top + stop.height
        return first, end

    def moved(self, view: ConversationView, step: int) -> BlockCursor:
        """The cursor on the block above (-1) or below (1); where it is at either end."""
        ids = view.conversation.ids
        if self.message_id not in ids:
            return last(view) or self
        stops = view.view(self.message_id).stops()
        names = [(stop.what, stop.key) for stop in stops]
        at = names.index((self.what, self.key)) if (self.what, self.key) in names else len(names) - 1
        if 0 <= at + step < len(stops):
            stop = stops[at + step]
            return BlockCursor(self.message_id, stop.what, stop.key)
        index = ids.index(self.message_id) + step
        if not 0 <= index < len(ids):
            return self
        stop = view.view(ids[index]).stops()[0 if step > 0 else -1]
        return BlockCursor(ids[index], stop.what, stop.key)

    def text(self, view: ConversationView) -> tuple[str, str]:
        """What is selected, as it was written, and what to call it. KeyError when it is gone."""
        message = view.conversation.get(self.message_id)
        if self.what == "code":
            text, language = view.view(self.message_id).code(self.key)
            return text, f"{language} code"
        if self.what == "reasoning":
            return message.reasoning, "reasoning"
        return message.text, "reply" if message.role == "assistant" else "message"


def last(view: ConversationView) -> BlockCursor | None:
    """The cursor on the last message; None in an empty conversation."""
    ids = view.conversation.ids
    return BlockCursor(ids[-1]) if ids else None
