"""What a transcript is made of: rows of runs, each run a piece of text under one style name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich.cells import cell_len

#: What a click on a run asks for, and its argument: a link's target, or the code block to copy.
Action = tuple[Literal["link", "copy", "fold", "variant", "follow"], str]


class Run(NamedTuple):
    """Text under one style: names of the palette, separated by blanks (`"quote strong"`)."""

    text: str
    style: str = ""
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the screen.

    The first `prefix` characters are decoration (bars, bullets, frames) and are left out when text is selected;
    `joint` is what stood between this row and the one before it: a line end, or nothing or a blank where the
    row was only wrapped. `fill` is the style of the cells after the last run, up to `width` (0: none), and with
    `full` of the gutter too.
    """

    runs: tuple[Run, ...]
    prefix: int = 0
    joint: str = "\n"
    fill: str = ""
    width: int = 0
    full: bool = False

    @property
    def text(self) -> str:
        """The row as plain text."""
        return "".join(run.text for run in self.runs)

    @property
    def cells(self) -> int:
        """The width of the text in terminal cells."""
        return sum(cell_len(run.text) for run in self.runs)


BLANK = Row(())
