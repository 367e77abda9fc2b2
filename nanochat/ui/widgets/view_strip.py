"""The names of a screen's views in one row, the present one marked; a click goes to another."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget


class ViewStrip(Widget):
    """A title, and the views behind it."""

    DEFAULT_CSS = "ViewStrip { height: 1; }"

    class Chosen(Message):
        """The view at this place was clicked."""

        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place

    def __init__(self, title: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = title
        self._names: tuple[str, ...] = ()
        self._present = 0

    def show(self, names: Sequence[str], present: int) -> None:
        """Show these views."""
        self._names, self._present = tuple(names), present
        self.refresh()

    def render(self) -> Content:
        """The row."""
        parts: list[str | tuple[str, str]] = [(self._title, "bold $primary"), "   "]
        for place, name in enumerate(self._names):
            parts += [(f" {name} ", "bold reverse" if place == self._present else "$foreground 70%"), " "]
        return Content.assemble(*parts)

    def on_click(self, event: events.Click) -> None:
        """Find what was clicked."""
        event.stop()
        start = self.styles.padding.left + len(self._title) + 3
        for place, name in enumerate(self._names):
            if start <= event.x < start + len(name) + 2:
                self.post_message(self.Chosen(place))
            start += len(name) + 3
