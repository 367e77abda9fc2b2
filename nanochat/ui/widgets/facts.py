"""Lines of facts, name and value, that wrap under their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from nanochat.sanitize import sanitize_line

_NAME = 14  # cells of a fact's name, as `Fit.arithmetic` and `Facts.lines` pad it
_UNIT = re.compile(
    r"(?<=\d) (?=(?:[kMGT]i?B|bytes|tokens|%)(?!\w))"
)  # between a number and its unit no row ends


class Facts(Widget):
    """Shows lines as `name          value`; a line without that form wraps as it is."""

    DEFAULT_CSS = "Facts { height: auto; }"

    def __init__(
        self, lines: Sequence[str] = (), *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: tuple[str, ...] = ()
        self.show(lines)

    def show(self, lines: Sequence[str]) -> None:
        """Show these; draws only when something changed."""
        fresh = tuple(sanitize_line(line) for line in lines)
        if fresh != self._lines:
            self._lines = fresh
            self.refresh(layout=True)

    def render(self) -> Content:
        """The lines at the present width."""
        return Content("\n").join(self._wrapped(self.size.width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as the lines take."""
        return len(self._wrapped(width))

    def _wrapped(self, width: int) -> list[Content]:
        rows: list[Content] = []
        for number, line in enumerate(self._lines):
            fact = len(line) > _NAME and line[:1] != " " and line[_NAME - 2 : _NAME] == "  "
            indent = " " * _NAME if fact else ""
            kept = _UNIT.sub("\u00a0", line)
            parts = wrap(kept, max(width, _NAME + 8), subsequent_indent=indent, drop_whitespace=True) or [""]
            style = "bold" if number == 0 and not fact else ""
            for place, part in enumerate(one.replace("\u00a0", " ") for one in parts):
                if fact and place == 0:
                    rows.append(Content.assemble((part[:_NAME], "$foreground 60%"), part[_NAME:]))
                else:
                    rows.append(Content.styled(part, style))
        return rows
