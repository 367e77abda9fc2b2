"""Lines that are made anew for every width, and as many rows as they are."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget


class FittedLines(Widget):
    """Whoever has something to show makes its `lines`."""

    DEFAULT_CSS = "FittedLines { height: auto; }"

    def lines(self, width: int) -> list[Content]:
        """What is shown in so many columns."""
        raise NotImplementedError

    def render(self) -> Content:
        """The lines at the present width."""
        return Content("\n").join(self.lines(self.size.width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as there are lines."""
        return len(self.lines(width))
