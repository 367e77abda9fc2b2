"""The transcript: a conversation on screen, with a block cursor whose keys are posted as requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip

from nanochat.ui import block_cursor
from nanochat.ui.block_cursor import BlockCursor
from nanochat.ui.conversation import Conversation, TranscriptMessage
from nanochat.ui.conversation_view import ConversationView
from nanochat.ui.inline import is_web_address
from nanochat.ui.rows import Row
from nanochat.ui.widgets.row_painter import ACTION
from nanochat.ui.widgets.transcript_view import TranscriptView

__all__ = ["Conversation", "Transcript", "TranscriptMessage", "Verb"]

Verb = Literal["edit", "fork", "regenerate", "delete"]

STYLES = (
    "user user_bar fold notice error footer step button dropped cursor badge "
    "reasoning reasoning_head reasoning_bar "
    "h1 h2 h3 h4 h5 h6 em strong strike code math link target marker rule quote_bar table_head table_frame raw "
    "panel panel_head panel_mark comment preprocessor keyword constant type number string escape attribute builtin "
    "decorator function variable operator deleted inserted"
)


class Transcript(TranscriptView, can_focus=True):
    """Shows one conversation; `swap` shows another one.

    Follows the end until the reader scrolls away; then a badge counts new lines and End returns. A block cursor
    (alt+up, alt+down) selects a message, its reasoning or a code block in it; letters act on what is selected and
    are posted as messages for the screen to carry out.
    """

    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text(encoding="utf-8")
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"transcript--{name}" for name in STYLES.split()}
    FOCUS_ON_CLICK = False  # who clicks a link or selects text goes on writing
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
        Binding("r", "act('regenerate')", "Regenerate", id="transcript.regenerate", tooltip="Answer again."),
        Binding(
            "d,delete", "act('delete')", "Delete", id="transcript.delete", tooltip="Delete this message."
        ),
        Binding("u", "undo", "Undo", id="transcript.undo", tooltip="Undo the last delete."),
        Binding("slash", "command", "Command", id="transcript.command", tooltip="A command, in the prompt."),
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
        """The reader wants to edit, fork at, regenerate or delete this message of this conversation.

        Forks have messages in common, and another conversation may be shown when this arrives.
        """

        verb: Verb
        message_id: str
        conversation: Conversation

    @dataclass
    class UndoRequested(Message):
        """The reader wants the last delete undone."""

    @dataclass
    class VariantRequested(Message):
        """The reader wants the version of this message of this conversation that is `step` (-1 or 1) away."""

        message_id: str
        step: int
        conversation: Conversation

    @dataclass
    class LinkRequested(Message):
        """The reader clicked a link (http or https only); open it only after they confirmed the full `url`."""

        url: str

    @dataclass
    class Left(Message):
        """The reader left the block cursor: the prompt should take the focus, and what was typed for it."""

        typed: str = ""

    _selected = range(0)  # the rows that the block cursor selects

    # The block cursor

    @property
    def cursor(self) -> BlockCursor | None:
        """What is selected."""
        return None if self._view is None else self._view.cursor

    def move_cursor(self, step: int) -> None:
        """Move the block cursor; the first step selects the last message and takes the focus."""
        view = self._view
        if view is None:
            return
        view.cursor = block_cursor.last(view) if view.cursor is None else view.cursor.moved(view, step)
        self.focus(scroll_visible=False)
        self._dirty.add(None)
        self.flush()
        if view.cursor is not None:
            self._bring(view, view.cursor)

    def show_message(self, message_id: str) -> None:
        """Select a message and bring its start on screen; nothing when it is not here."""
        view = self._view
        if view is not None and message_id in view.conversation:
            view.cursor = BlockCursor(message_id)
            self._dirty.add(None)
            self.flush()
            self._bring(view, view.cursor)

    def bring_cursor(self) -> None:
        """Scroll to what is selected when nothing of it is on screen."""
        view, cursor = self._view, self.cursor
        if view is None or cursor is None:
            return
        self.flush()
        first, end = cursor.span(view)
        top = round(self.scroll_y)
        if end <= top or first >= top + self.scrollable_content_region.height:
            self._bring(view, cursor)

    def clear_cursor(self) -> None:
        """Take the block cursor away."""
        if self._view is not None and self._view.cursor is not None:
            self._view.cursor = None
            self.refresh()

    def copyable(self) -> tuple[str, str] | None:
        """What the cursor selects, as text, and what to call it; None without a cursor."""
        view, cursor = self._view, self.cursor
        if view is None or cursor is None or cursor.message_id not in view.conversation:
            return None
        return cursor.text(view)

    def toggle_reasoning(self) -> None:
        """Unfold every reasoning block of this conversation, or fold them all when one is unfolded."""
        if self._view is not None:
            self._refold(self._view, self._view.fold_all)

    def fold(self, message_id: str) -> None:
        """Fold or unfold a message's reasoning, or a long question."""
        view = self._view
        if view is not None and message_id in view.conversation:
            self._refold(view, view.view(message_id).toggle)

    def _refold(self, view: ConversationView, change: Callable[[], None]) -> None:
        """Fold or unfold something. Rows that the reader unfolds are not new ones that have come."""
        self.flush()
        unseen = view.unseen
        change()
        self._dirty.add(None)
        self.flush()
        view.unseen = unseen
        self._remember(round(self.scroll_y))

    def gutter_style(self, row: Row, index: int) -> str:
        """The bar left of a row: the block cursor's, or a question's."""
        return "cursor" if index in self._selected else super().gutter_style(row, index)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The rows of a part of the widget."""
        view, cursor = self._view, self.cursor
        self._selected = range(0) if view is None or cursor is None else range(*cursor.span(view))
        return super().render_lines(crop)

    def _bring(self, view: ConversationView, cursor: BlockCursor) -> None:
        """Scroll to what the cursor selects."""
        for _ in range(2):  # drawing what came on screen may have changed where it is
            self._show(*cursor.span(view))

    def _show(self, first: int, end: int) -> None:
        """Scroll as little as brings these rows on screen; their start when they are too many."""
        top, rows = round(self.scroll_y), self.scrollable_content_region.height
        if first >= top and end <= top + rows:
            return
        self.scroll_to(y=first if first < top or end - first > rows else end - rows)

    # Keys

    def action_move_cursor(self, step: int) -> None:
        """Move the block cursor."""
        self.move_cursor(step)

    def action_leave(self) -> None:
        """Back to the prompt."""
        self.clear_cursor()
        self.post_message(self.Left())

    def action_copy(self) -> None:
        """Copy what is selected."""
        found = self.copyable()
        if found is not None:
            self.post_message(self.CopyRequested(*found))

    def action_fold(self) -> None:
        """Fold or unfold what is selected."""
        if self.cursor is not None:
            self.fold(self.cursor.message_id)

    def action_act(self, verb: Verb) -> None:
        """Ask for something to be done with the selected message."""
        view, cursor = self._view, self.cursor
        if view is not None and cursor is not None:
            self.post_message(self.ActionRequested(verb, cursor.message_id, view.conversation))

    def action_undo(self) -> None:
        """Ask for the last delete to be undone."""
        self.post_message(self.UndoRequested())

    def action_command(self) -> None:
        """A command is typed in the prompt."""
        self.clear_cursor()
        self.post_message(self.Left("/"))

    def action_variant(self, step: int) -> None:
        """Ask for another version of the selected message."""
        view, cursor = self._view, self.cursor
        if view is not None and cursor is not None:
            self.post_message(self.VariantRequested(cursor.message_id, step, view.conversation))

    def action_scroll_half(self, pages: int) -> None:
        """Scroll by half a page."""
        self.scroll_to(y=self.scroll_y + pages * (self.scrollable_content_region.height // 2))

    def action_follow(self) -> None:
        """Go to the end and stay there."""
        self.follow()

    # The mouse

    async def on_click(self, event: events.Click) -> None:
        """Do what the run under the mouse asks for."""
        action = event.style.meta.get(ACTION)
        view = self._view
        if action is None or view is None:
            return
        event.stop()
        kind, argument = action
        place = view.locate(round(self.scroll_y) + event.y)
        if kind == "follow":
            self.follow()
        elif kind == "link" and is_web_address(argument):
            self.post_message(self.LinkRequested(argument))
        elif place is None:
            return
        elif kind == "fold":
            self.fold(place.message_id)
        elif kind == "variant":
            self.post_message(self.VariantRequested(place.message_id, int(argument), view.conversation))
        elif kind == "copy":
            text, language = view.view(place.message_id).code(argument)
            self.post_message(self.CopyRequested(text, f"{language} code"))
