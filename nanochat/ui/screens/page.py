"""A page of text over the chat: the help, and what the figures mean."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Label, Static

from nanochat.sanitize import sanitize_line
from nanochat.ui.screens.leaving import LeftOnce

NARROW = [(0, "-narrow"), (76, "-medium")]  # columns; what lies over the chat is 72 to 100 wide
LOW = [(0, "-lowest"), (16, "-low"), (24, "-tall")]  # rows


class Page(LeftOnce, ModalScreen[None]):
    """Shows one widget in a frame that scrolls; Esc or the key that opened it goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Back", id="page.back", show=False),
        Binding("j,down", "scroll('down')", "Down", id="page.down", show=False),
        Binding("k,up", "scroll('up')", "Up", id="page.up", show=False),
        Binding("pagedown,space", "scroll('page_down')", "Page down", id="page.page_down", show=False),
        Binding("pageup", "scroll('page_up')", "Page up", id="page.page_up", show=False),
        Binding("g,home", "scroll('home')", "Start", id="page.start", show=False),
        Binding("G,end", "scroll('end')", "End", id="page.end", show=False),
    ]

    HORIZONTAL_BREAKPOINTS = NARROW
    VERTICAL_BREAKPOINTS = LOW

    def __init__(self, title: str, body: Widget, *, at_end: bool = False) -> None:
        super().__init__()
        self._title, self._body, self._at_end = title, body, at_end

    def compose(self) -> ComposeResult:
        """A box with the text."""
        with Vertical(classes="page"):
            yield Label(Content(sanitize_line(self._title)), classes="dialog-title")
            with VerticalScroll(classes="page-text", can_focus=False):
                yield self._body
            yield Static("Esc back · ↑↓ PgUp PgDn scroll", classes="dialog-hint")

    def on_mount(self) -> None:
        """Start where the text is read from."""
        if self._at_end:
            self.call_after_refresh(self.action_scroll, "end")

    def action_scroll(self, where: str) -> None:
        """Scroll the text."""
        for text in self.query(VerticalScroll):  # a key may come before it is there, or when it has gone
            {
                "down": text.scroll_down, "up": text.scroll_up, "page_down": text.scroll_page_down,
                "page_up": text.scroll_page_up, "home": text.scroll_home, "end": text.scroll_end,
            }[where](animate=False)  # fmt: skip
