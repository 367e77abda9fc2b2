"""Textual's list of options, where a page key that comes before the list is laid out does nothing."""

from __future__ import annotations

from contextlib import suppress

from textual._widget_navigation import Direction
from textual.widgets import OptionList


class PagedList(OptionList):
    """Textual 8.2.8 looks for the rows of a page in a table that the layout fills, and ends the application without it."""

    def _move_page(self, direction: Direction) -> None:
        with suppress(LookupError):
            super()._move_page(direction)
