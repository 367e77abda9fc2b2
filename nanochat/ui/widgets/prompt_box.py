"""The box that messages are written in: several lines, history, and long pastes folded to one label."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.document._document import EditResult, Location
from textual.document._edit import Edit
from textual.message import Message
from textual.widgets import TextArea

from nanochat.sanitize import sanitize
from nanochat.ui.attachments import dropped_file, mention
from nanochat.ui.draft import Draft, wants_folding
from nanochat.ui.input_history import InputHistory
from nanochat.ui.recall import Recall

_JOINERS = ("\u200c", "\u200d")  # of Persian and Indian scripts, and of emoji; a keyboard sends them
Count = Callable[[str], Awaitable[int | None]]


class PromptBox(TextArea):
    """Where the user writes. Enter sends; ctrl+j, shift+enter and alt+enter begin a new line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter", "send", "Send", id="prompt.send", tooltip="Send the message; while a reply comes, after it.",
            show=False,
        ),
        Binding(
            "ctrl+j,shift+enter,alt+enter", "newline", "New line", id="prompt.newline", tooltip="Begin a new line.",
            show=False,
        ),
        Binding(
            "up", "up", "Earlier message", id="prompt.up",
            tooltip="A line up, then what you sent before; in an empty box, what waits to be sent.", show=False,
        ),
        Binding(
            "down", "down", "Later message", id="prompt.down", tooltip="A line down, then what you sent after.",
            show=False,
        ),
        Binding("tab", "complete", "Complete", id="prompt.complete", tooltip="Take the suggestion.", show=False),
        Binding("pageup", "scroll(-1)", "Page up", id="prompt.page_up", tooltip="Scroll the chat up.", show=False),
        Binding(
            "pagedown", "scroll(1)", "Page down", id="prompt.page_down", tooltip="Scroll the chat down.", show=False
        ),
        Binding(
            "end,ctrl+e", "end", "End", id="prompt.end", tooltip="The line's end; in an empty box, the chat's.",
            show=False,
        ),
        Binding("ctrl+underscore", "undo", "Undo", id="prompt.undo", tooltip="Undo typing.", show=False),
    ]  # fmt: skip

    @dataclass
    class ScrollRequested(Message):
        """The user scrolls the chat by pages from the prompt; 0 is to its end."""

        pages: int

    class Typing(Message):
        """The text changed: suggestions are due."""

    def __init__(self, history: InputHistory, *, id: str | None = None, placeholder: str = "") -> None:
        super().__init__(id=id, placeholder=placeholder, highlight_cursor_line=False, soft_wrap=True)
        self.history_of_inputs = history
        self.recall = Recall()
        self.folder = Path.cwd()
        self.count_tokens: Count | None = None
        self.completing: Callable[[str], bool] = lambda _verb: False
        self.send: Callable[[Draft], None] = lambda _draft: None  # at once: the next key may show another tab
        self.keymap: dict[str, str] = {}
        self._actions: dict[str, str] | None = None
        self._draft = Draft()

    @property
    def draft(self) -> Draft:
        """What stands in the box. A paste whose label was deleted is no part of it, though undo may bring it back."""
        text = self.text
        folds = {label: full for label, full in self._draft.folds.items() if label in text}
        return Draft(text, folds, self.cursor_location)

    @property
    def before_cursor(self) -> str:
        """The text up to the cursor: what suggestions are made from."""
        row, column = self.cursor_location
        lines = [str(self.document.get_line(each)) for each in range(row + 1)]
        return "\n".join([*lines[:-1], lines[-1][:column]])

    def load_draft(self, draft: Draft) -> None:
        """Show another draft, with its cursor."""
        self._draft = Draft(folds=dict(draft.folds))
        self.load_text(draft.text)
        self.move_cursor(self.document.end if draft.cursor is None else self.clamp_visitable(draft.cursor))

    def leave_keys(self, taken: Iterable[str]) -> None:
        """Have no meaning of one's own for the application's keys, and hand them up to it.

        They come here when a screen over the chat, which has keys of its own, closed as one was on its way.
        """
        for key in taken:
            self._bindings.key_to_bindings.pop(key, None)

    def insert_text(self, text: str) -> None:
        """Put `text` at the cursor, as if it had been pasted, folded when it is long."""
        self._put(self._draft.fold(text) if wants_folding(text) else sanitize(text))

    def leave_recall(self) -> None:
        """What stands here is not what Up and Down led to: what was written on the way comes back with Up."""
        for text in self.recall.leave():
            self.history_of_inputs.add(text, sent=False)

    # Keys --------------------------------------------------------------------------------------

    async def _on_key(self, event: events.Key) -> None:
        """Do what a key is bound to here and now.

        Textual would hand the key up to the application first, and what is typed right behind it (the machine was
        busy, the keys are waiting) would overtake it: text behind Enter would be sent with the line before.
        """
        action = self._keys().get(event.key)
        if event.character in _JOINERS:  # Textual takes what has no width for no text
            event.prevent_default()
            self._put(event.character)
        elif action is not None:
            event.stop()
            event.prevent_default()
            await self.run_action(action)

    def _keys(self) -> dict[str, str]:
        """What each key does here, with the user's own key map."""
        if self._actions is None:
            bindings = self._bindings.copy()
            bindings.apply_keymap(self.keymap)
            self._actions = {key: each[0].action for key, each in bindings.key_to_bindings.items() if each}
        return self._actions

    def sends(self, event: events.Event) -> bool:
        """Whether this is the key that sends."""
        return isinstance(event, events.Key) and self._keys().get(event.key) == "send"

    def action_send(self) -> None:
        """Send, or take the chosen completion."""
        if self.completing("enter"):
            return
        draft = self.draft
        if not draft.empty:
            self.leave_recall()
            self.load_draft(Draft())
            self.send(draft)

    def action_newline(self) -> None:
        """Begin a new line."""
        self._put("\n")

    def action_complete(self) -> None:
        """Take the chosen completion; without one, go to the next widget."""
        if not self.completing("accept"):
            self.screen.focus_next()

    def action_up(self) -> None:
        """The completion above, a line up, or what was sent before."""
        if self.completing("up"):
            return
        if not self.navigator.is_first_wrapped_line(self.cursor_location):
            self.action_cursor_up()
        elif (older := self.recall.older(self.history_of_inputs.entries, self.draft)) is not None:
            self.load_draft(older)

    def action_down(self) -> None:
        """The completion below, a line down, or what was sent after."""
        if self.completing("down"):
            return
        if not self.navigator.is_last_wrapped_line(self.cursor_location):
            self.action_cursor_down()
        elif (newer := self.recall.newer(self.draft)) is not None:
            self.load_draft(newer)

    def action_scroll(self, pages: int) -> None:
        """Scroll the chat."""
        self.post_message(self.ScrollRequested(pages))

    def action_end(self) -> None:
        """The end of the line, or of the chat."""
        if self.text:
            self.action_cursor_line_end()
        else:
            self.post_message(self.ScrollRequested(0))

    # Pastes ------------------------------------------------------------------------------------

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        file = dropped_file(text, self.folder)
        if file is not None:
            self._put(mention(file, self.folder) + " ")
        elif (
            wants_folding(text) or sanitize(text) != text
        ):  # what cannot be shown as it is stays whole in a fold
            tokens = await self.count_tokens(text) if self.count_tokens is not None else None
            self._put(self._draft.fold(text, tokens=tokens))
        else:
            self._put(text)

    def edit(self, edit: Edit) -> EditResult:
        """Perform an edit; a label is never cut: what touches its inside takes or spares the whole of it."""
        top, bottom = min(edit.from_location, edit.to_location), max(edit.from_location, edit.to_location)
        if top == bottom:
            top = bottom = self._outside(top, toward_end=True)
        else:
            top, bottom = self._outside(top, toward_end=False), self._outside(bottom, toward_end=True)
        return super().edit(Edit(edit.text, top, bottom, edit.maintain_selection_offset))

    def on_text_area_changed(self) -> None:
        """Tell that suggestions are due."""
        self.post_message(self.Typing())

    def _outside(self, location: Location, *, toward_end: bool) -> Location:
        row, column = location
        if row >= self.document.line_count:
            return location  # deleting the last line names the start of the one after it, which is not there
        for start, end in self._draft.labels(str(self.document.get_line(row))):
            if start < column < end:
                return row, end if toward_end else start
        return location

    def _put(self, text: str) -> None:
        result = self.replace(text, *self.selection, maintain_selection_offset=False)
        self.move_cursor(result.end_location)
        self.scroll_cursor_visible()
