"""Ctrl-C: what is selected, and whether it was pressed twice."""

from __future__ import annotations

from time import monotonic
from typing import Any

from textual.app import App
from textual.widgets import Input, TextArea

TWICE_SECONDS = 2.0


class Interrupts:
    """Remembers the last Ctrl-C that found nothing to copy and nothing to stop."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def again(self) -> bool:
        """Whether this is the second within two seconds."""
        now = monotonic()
        last, self._last = self._last, now
        return now - last <= TWICE_SECONDS

    @staticmethod
    def selected(app: App[Any]) -> str:
        """The text that is selected, in the focused field or on the screen."""
        focused = app.focused
        if isinstance(focused, (TextArea, Input)) and focused.selected_text:
            return focused.selected_text
        return app.screen.get_selected_text() or ""
