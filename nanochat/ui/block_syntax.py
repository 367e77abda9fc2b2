"""The line syntax of Markdown's blocks: indentation with tab stops, and what may start or end a block.

Follows CommonMark 0.31 (https://spec.commonmark.org/0.31.2/) and GFM's tables. HTML blocks and link reference
definitions stay text: nothing of them could be shown. Patterns are linear in the length of the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE_START = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
RULE = re.compile(r"(?:(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|(?:-[ \t]*){3,})$")
SETEXT = re.compile(r"(=+|-+)[ \t]*$")
ITEM = re.compile(r"([-+*])(?=[ \t]|$)|(\d{1,9})([.)])(?=[ \t]|$)")
DELIMITER_CELL = re.compile(r":?-+:?")
MATH_ENDS = {"$$": "$$", "\\[": "\\]"}
#: A beginning of a line that may yet become a marker of a block: nothing to show until more has come.
HALF_MARKER = re.compile(r"[ \t>\-*+#_=|:`~$\\\[.)\d]*$")


class Cursor:
    """A place in one line, by character and by column (tab stops every four columns)."""

    __slots__ = ("_column", "_offset", "_spare", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._offset = 0
        self._column = 0
        self._spare = 0  # columns left of a tab that was consumed in part

    def _next(self) -> tuple[int, int]:
        """The offset of the next character that is not blank, and its column."""
        offset, column = self._offset, self._column + self._spare
        for character in self.text[offset:]:
            if character == " ":
                column += 1
            elif character == "\t":
                column += 4 - column % 4
            else:
                break
            offset += 1
        return offset, column

    @property
    def indent(self) -> int:
        """Columns of blank before the next character."""
        return self._next()[1] - self._column

    @property
    def blank(self) -> bool:
        """Whether nothing but blanks is left."""
        return self._next()[0] >= len(self.text)

    @property
    def stripped(self) -> str:
        """What is left, without its indentation."""
        return self.text[self._next()[0] :]

    @property
    def rest(self) -> str:
        """What is left, byte for byte, but for a tab consumed in part, whose other columns become spaces."""
        return " " * self._spare + self.text[self._offset :]

    def skip_blanks(self) -> None:
        """Go to the next character that is not blank."""
        self._offset, self._column = self._next()
        self._spare = 0

    def skip_columns(self, count: int) -> None:
        """Consume up to `count` columns of blanks; a tab may be consumed in part."""
        while count > 0:
            if self._spare:
                taken = min(count, self._spare)
                self._spare -= taken
                self._column += taken
                count -= taken
                continue
            character = self.text[self._offset : self._offset + 1]
            if character == " ":
                self._column += 1
                count -= 1
            elif character == "\t":
                self._spare = 4 - self._column % 4
            else:
                return
            self._offset += 1

    def skip_characters(self, count: int) -> None:
        """Consume `count` characters that are not blanks."""
        self._offset += count
        self._column += count


@dataclass(frozen=True, slots=True)
class ItemMarker:
    """A list marker: `kind` is what the items of one list share (`-`, `+`, `*`, `.` or `)`)."""

    kind: str
    number: int
    indent: int  # columns from the container's edge to the item's content
    empty: bool


def take_item_marker(cursor: Cursor) -> ItemMarker | None:
    """Consume a list marker and the blanks after it, or consume nothing."""
    found = ITEM.match(cursor.stripped)
    if found is None:
        return None
    offset = cursor.indent
    width = found.end()
    cursor.skip_blanks()
    cursor.skip_characters(width)
    empty = cursor.blank
    padding = cursor.indent if 1 <= cursor.indent <= 4 and not empty else 1
    cursor.skip_columns(padding)
    kind, number = (found[1], 0) if found[1] else (found[3], int(found[2]))
    return ItemMarker(kind, number, offset + width + padding, empty)


def heading(line: str) -> tuple[int, str] | None:
    """The level and the text of an ATX heading, if this line is one."""
    bare = line.lstrip("#")
    level = len(line) - len(bare)
    if not 1 <= level <= 6 or (bare and bare[0] not in " \t"):
        return None
    text = bare.strip(" \t")
    unclosed = text.rstrip("#")
    if not unclosed or unclosed[-1] in " \t":
        text = unclosed.rstrip(" \t")
    return level, text


def fence_start(line: str) -> tuple[str, str] | None:
    """The fence (three backticks or tildes, or more) and the info string, if this line opens code."""
    found = FENCE_START.match(line)
    if found is None:
        return None
    return (found[1], found[2].strip()) if found[1] else (found[3], found[4].strip())


def ends_fence(line: str, fence: str) -> bool:
    """Whether this line, without its indentation, closes the code block that `fence` opened."""
    bare = line.rstrip(" \t")
    return len(bare) >= len(fence) and bare == fence[0] * len(bare)


def table_cells(line: str) -> list[str]:
    """The cells of a table's row, split at pipes that are not escaped; the outer pipes are optional."""
    cells: list[str] = []
    start = 0
    line = line.strip()
    for index, character in enumerate(line):
        if character == "|" and (index == 0 or line[index - 1] != "\\"):
            cells.append(line[start:index])
            start = index + 1
    cells.append(line[start:])
    if cells and not cells[0].strip():
        cells = cells[1:]
    if cells and not cells[-1].strip():
        cells = cells[:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def starts_table(header: str, delimiter: str) -> bool:
    """Whether these two lines are the head of a table."""
    if "|" not in header or delimiter.startswith(("- ", "-\t")):
        return False
    marks = table_cells(delimiter)
    if not marks or not all(DELIMITER_CELL.fullmatch(mark) for mark in marks):
        return False
    return len(marks) == len(table_cells(header))
