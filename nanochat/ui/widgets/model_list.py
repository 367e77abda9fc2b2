"""The list of models: groups with their columns, redrawn row by row as downloads move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from nanochat.ui.model_rows import Row, lines_of
from nanochat.ui.widgets.paged_list import PagedList

_TONES = {"good": "$success", "bad": "$error", "dim": "$foreground 60%", "active": "bold $accent"}
_QUIET = ("dtype", "licence", "context", "note", "more")


class ModelList(PagedList):
    """Shows rows; what is done with the highlighted one, the screen decides."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", id="models.down", show=False),
        Binding("k", "cursor_up", "Up", id="models.up", show=False),
    ]

    @dataclass
    class Taken(Message):
        """Enter, or a click, on a row."""

        row: Row

    @dataclass
    class Moved(Message):
        """Another row is highlighted."""

        row: Row

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._rows: list[Row] = []
        self._drawn_at = 0

    @property
    def row(self) -> Row | None:
        """The highlighted row."""
        return None if self.highlighted is None else self._rows[self.highlighted]

    def show(self, rows: Sequence[Row], *, go_to: str = "") -> None:
        """Show these rows; the highlight stays on the row that it was on, or goes to the one of the key `go_to`."""
        before, width = self.row, self._width
        fresh = list(rows)
        same = [row.key for row in fresh] == [row.key for row in self._rows] and width == self._drawn_at
        if same:
            for place, (old, new) in enumerate(zip(self._rows, fresh, strict=True)):
                if old != new:
                    self.replace_option_prompt_at_index(place, _prompt(new, width))
            self._rows = fresh
        else:
            self._rows, self._drawn_at = fresh, width
            self.set_options(
                [
                    Option(_prompt(row, width), id=row.key, disabled=row.kind in ("heading", "words"))
                    for row in fresh
                ]
            )
        wanted = go_to or (before.key if before is not None and not same else "")
        if wanted or self.highlighted is None:
            self.highlighted = self._place(wanted, before)
        if self.highlighted == self._first:
            self.scroll_to(y=0, animate=False)  # with the heading above it

    def lead_with(self, key: str) -> None:
        """Scroll until the row of this key, a group's heading, is the first on screen, as far as there are rows."""
        place = next((place for place, row in enumerate(self._rows) if row.key == key), 0)
        above = sum(len(lines_of(row, self._width)) for row in self._rows[:place])
        self.scroll_to(y=above, animate=False)

    def on_resize(self, _: events.Resize) -> None:
        """Other columns fit."""
        if self._width != self._drawn_at and self._rows:
            self.show(self._rows)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the row."""
        event.stop()
        self.post_message(self.Taken(self._rows[event.option_index]))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say which row it is."""
        event.stop()
        if event.option_index < len(self._rows):
            self.post_message(self.Moved(self._rows[event.option_index]))

    def action_cursor_up(self) -> None:
        """Up; at the first row the heading above it comes into view too."""
        super().action_cursor_up()
        if self.highlighted == self._first:
            self.scroll_to(y=0, animate=False)

    @property
    def _first(self) -> int | None:
        return next((n for n, row in enumerate(self._rows) if row.kind not in ("heading", "words")), None)

    @property
    def _width(self) -> int:
        return max(self.size.width - 3, 30)  # the padding and the scroll bar

    def _place(self, key: str, before: Row | None) -> int | None:
        """Where the highlight goes: to the row of this key, else of this model, else to the first that can be taken."""
        for test in (
            lambda row: row.key == key,
            lambda row: before is not None and row.kind != "heading" and row.name == before.name,
            lambda row: row.kind not in ("heading", "words"),
        ):
            found = next((place for place, row in enumerate(self._rows) if test(row)), None)
            if found is not None:
                return found
        return None


def _prompt(row: Row, width: int) -> Content:
    lines: list[Content] = []
    for line in lines_of(row, width):
        lines.append(Content.assemble(*((text, _style(row, part)) for text, part in line)))
    return Content("\n").join(lines)


def _style(row: Row, part: str) -> str:
    if row.kind == "heading":
        return "bold $primary" if part == "name" else "$foreground 50%"
    if part == "name":
        return "bold"
    if part == "mark":
        return "bold $accent"
    if part == "fit":
        return _TONES.get(row.tone, "")
    if part == "more" and row.tone == "bad":
        return "$error"
    return "$foreground 60%" if part in _QUIET else ""
