"""The transcript: a view onto one `Conversation` at a time, drawn line by line, following the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.scroll_view import ScrollView

from nanochat.ui.conversation import Conversation, TranscriptMessage

__all__ = ["Conversation", "Transcript", "TranscriptMessage"]

Verb = Literal["edit", "fork", "regenerate", "delete"]


class Transcript(ScrollView, can_focus=True):
    """Shows one conversation; `swap` shows another one.

    Follows the end until the reader scrolls away; then a badge counts new lines and End returns. A block cursor
    (alt+up, alt+down) selects a message, or a code block in it; letters act on what is selected and are posted
    as messages for the screen to carry out.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("alt+up", "move_cursor(-1)", "Block above", id="transcript.cursor_up", show=False),
        Binding("alt+down", "move_cursor(1)", "Block below", id="transcript.cursor_down", show=False),
        Binding("escape", "leave", "Back to the prompt", id="transcript.leave", show=False),
        Binding(
            "y,c", "copy", "Copy", id="transcript.copy", tooltip="Copy the selected block, byte for byte."
        ),
        Binding("space,enter", "fold", "Fold", id="transcript.fold", tooltip="Fold or unfold."),
        Binding("e", "act('edit')", "Edit", id="transcript.edit", tooltip="Edit and send as a new version."),
        Binding("f", "act('fork')", "Fork", id="transcript.fork", tooltip="A new chat from here."),
        Binding("r", "act('regenerate')", "Regenerate", id="transcript.regenerate"),
        Binding("d,delete", "act('delete')", "Delete", id="transcript.delete"),
        Binding(
            "left_square_bracket,left", "variant(-1)", "Version before", id="transcript.variant_previous"
        ),
        Binding("right_square_bracket,right", "variant(1)", "Version after", id="transcript.variant_next"),
        Binding("j,down", "scroll_down", "Down", id="transcript.down", show=False),
        Binding("k,up", "scroll_up", "Up", id="transcript.up", show=False),
        Binding("ctrl+d", "scroll_half(1)", "Half a page down", id="transcript.half_down", show=False),
        Binding("ctrl+u", "scroll_half(-1)", "Half a page up", id="transcript.half_up", show=False),
        Binding("g,home", "scroll_home", "Start", id="transcript.start", show=False),
        Binding("G,end", "follow", "End", id="transcript.end", show=False),
    ]

    @dataclass
    class CopyRequested(Message):
        """The reader wants `text` on the clipboard; `what` names it (`python code`, `reply`, `message`)."""

        text: str
        what: str

    @dataclass
    class ActionRequested(Message):
        """The reader wants to edit, fork at, regenerate or delete this message."""

        verb: Verb
        message_id: str

    @dataclass
    class VariantRequested(Message):
        """The reader wants the version of this message that is `step` (-1 or 1) away."""

        message_id: str
        step: int

    @dataclass
    class LinkRequested(Message):
        """The reader clicked a link (http or https only); open it only after they confirmed the full `url`."""

        url: str

    @dataclass
    class FollowChanged(Message):
        """The view follows the end from now on, or no longer does."""

        following: bool

    @dataclass
    class Left(Message):
        """The reader left the block cursor: the prompt should take the focus."""

    @property
    def conversation(self) -> Conversation | None:
        """What is shown."""
        raise NotImplementedError

    def swap(self, conversation: Conversation | None) -> None:
        """Show this conversation, where and how it was last seen; a new one from its end."""
        raise NotImplementedError

    def follow(self) -> None:
        """Go to the end and stay there."""
        raise NotImplementedError

    @property
    def following(self) -> bool:
        """Whether the view stays at the end as text comes."""
        raise NotImplementedError

    def move_cursor(self, step: int) -> None:
        """Move the block cursor; the first step selects the last block and takes the focus."""
        raise NotImplementedError

    def clear_cursor(self) -> None:
        """Take the block cursor away."""
        raise NotImplementedError

    def toggle_reasoning(self) -> None:
        """Unfold every reasoning block of this conversation, or fold them all."""
        raise NotImplementedError
