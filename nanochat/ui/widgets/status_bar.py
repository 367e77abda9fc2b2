"""The status bar: fixed fields in one row, drawn only when a figure changed."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from nanochat.sanitize import sanitize_line
from nanochat.ui.cells import fixed
from nanochat.ui.status_fields import Field, fitting

_GAP = " │ "
_TONES = {"warning": "bold $warning", "error": "bold $error", "active": "bold $success"}


class StatusBar(Widget):
    """One row of figures. A click asks what they mean."""

    class Clicked(Message):
        """The user wants to know what the figures mean."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._fields: tuple[Field, ...] = ()

    def show(self, fields: Sequence[Field]) -> None:
        """Show these figures; costs nothing when they are the same."""
        fresh = tuple(fields)
        if fresh != self._fields:
            self._fields = fresh
            self.refresh()

    def render(self) -> Content:
        """The row: what fits, by rank."""
        parts: list[tuple[str, str]] = [(" ", "")]
        for place, field in enumerate(fitting(self._fields, self.size.width - 2, gap=len(_GAP))):
            if place:
                parts.append((_GAP, "$foreground 25%"))
            parts.append((fixed(sanitize_line(field.text), field.width), _TONES.get(field.tone, "")))
        return Content.assemble(*parts)

    def on_click(self, event: events.Click) -> None:
        """Ask for the words."""
        event.stop()
        self.post_message(self.Clicked())
