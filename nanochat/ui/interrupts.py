"""Ctrl-C: it copies what is selected, else stops what runs, else quits at the second time."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from textual.widgets import Input, TextArea

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

TWICE_SECONDS = 2.0


class Interrupts:
    """Remembers the last Ctrl-C that found nothing to copy and nothing to stop."""

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self._last = float("-inf")

    def press(self) -> None:
        """Do what Ctrl-C means now."""
        app, selected = self._app, self._selected()
        if selected:
            app.copy(selected, "the selection")
        elif app.benchmark.running:
            app.attempt(app.benchmark.stop())
        elif app.desk.is_open and app.chats.active.busy and not app.chats.active.stopping:
            app.chats.active.stop()
            app.chat_screen.surroundings.refresh()
        elif self._again():
            app.attempt(app.lifetime.end(ask=False))
        else:
            app.say("Press Ctrl+C again to quit.")

    def _again(self) -> bool:
        """Whether this is the second within two seconds."""
        now = monotonic()
        last, self._last = self._last, now
        return now - last <= TWICE_SECONDS

    def _selected(self) -> str:
        """The text that is selected, in the focused field or on the screen."""
        focused = self._app.focused
        if isinstance(focused, (TextArea, Input)) and focused.selected_text:
            return focused.selected_text
        return self._app.screen.get_selected_text() or ""
