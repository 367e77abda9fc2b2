"""Sections of rows, one under the other: fixed ones, and stacks of blocks that are drawn where they are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.ui.block_stack import BlockStack
from nanochat.ui.rows import BLANK, Row


@dataclass(slots=True)
class Section:
    """Rows that belong together: given ones, or a stack of blocks."""

    name: str
    top: int
    rows: list[Row]
    stack: BlockStack | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return len(self.rows) if self.stack is None else self.stack.height

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        return self.rows[y] if self.stack is None else self.stack.row(y)


@dataclass(frozen=True, slots=True)
class Spot:
    """A row, by what it belongs to: it can be found again after heights have changed."""

    section: str
    block: int
    row: int
    line: tuple[int, int] | None = (
        None  # of code, and the character in it: long lines take other rows when resized
    )


class Column:
    """Sections from top to bottom. After their end every row is blank."""

    def __init__(self) -> None:
        self.sections: list[Section] = []

    @property
    def height(self) -> int:
        """Rows; in part estimated until all was drawn."""
        return self.sections[-1].top + self.sections[-1].height if self.sections else 0

    def add(self, name: str, rows: list[Row], stack: BlockStack | None = None) -> None:
        """Put a section under the others."""
        self.sections.append(Section(name, self.height, rows, stack))

    def draw(self, first: int, end: int) -> bool:
        """Draw what rows `first` to `end` (exclusive) show; False when all of it was drawn."""
        drew = False
        for section in self.sections:
            stack = section.stack
            if stack is not None and section.top < end and first < section.top + section.height:
                drew |= stack.draw(first - section.top, end - section.top)
        if drew:
            top = 0
            for section in self.sections:
                section.top = top
                top += section.height
        return drew

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        section = self._section(y)
        return section.row(y - section.top) if section else BLANK

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y`, decoration left out, are in the text."""
        section = self._section(y)
        if section is None:
            return ""
        if section.stack is not None:
            return section.stack.source(y - section.top, begin, end)
        row = section.row(y - section.top)
        return row.text[row.prefix :][begin:end]

    def exact(self, first: int, end: int) -> int | None:
        """The first row from `first` to `end` (exclusive) of something whose height is known."""
        for section in self.sections:
            top, bottom = max(first, section.top), min(end, section.top + section.height)
            if top >= bottom:
                continue
            if section.stack is None:
                return top
            found = section.stack.exact(top - section.top, bottom - section.top)
            if found is not None:
                return section.top + found
        return max(first, self.height) if first <= self.height < end else None

    def locate(self, y: int) -> Spot:
        """What row `y` belongs to."""
        section = self._section(y)
        if section is None:
            return Spot("", 0, 0)
        if section.stack is None:
            return Spot(section.name, 0, y - section.top)
        return Spot(section.name, *section.stack.locate(y - section.top))

    def find(self, spot: Spot) -> int:
        """The row that a spot is on now; the first one when it is gone."""
        for section in self.sections:
            if section.name == spot.section:
                inner = min(spot.row, max(0, section.height - 1))
                return section.top + (
                    inner if section.stack is None else section.stack.find(spot.block, spot.row, spot.line)
                )
        return 0 if spot.section else self.height

    def take_changed(self) -> int:
        """The first row of a stack that has changed since the last call; `height` when none has."""
        changed = self.height
        for section in self.sections:
            if section.stack is not None:
                row = section.stack.take_changed()
                if row < section.height:
                    changed = min(changed, section.top + row)
        return changed

    def highlight(self, first: int, end: int) -> bool:
        """Work on the colours of code in these rows for a moment; whether there is nothing left to do."""
        for section in self.sections:
            if section.stack is not None and not section.stack.highlight(
                first - section.top, end - section.top
            ):
                return False
        return True

    def _section(self, y: int) -> Section | None:
        for section in self.sections:
            if y < section.top + section.height:
                return section
        return None
