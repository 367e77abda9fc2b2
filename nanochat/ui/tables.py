"""A finished table -> rows: columns that fit, cells that wrap; as records where the screen is too narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from rich.cells import cell_len

from nanochat.ui.block_syntax import table_cells
from nanochat.ui.inline import join
from nanochat.ui.rows import Row, Run
from nanochat.ui.wrapping import cut_runs, wrap

Align = Literal["left", "center", "right"]
#: A cell's text and its style -> runs.
Parse = Callable[[str, str], list[Run]]

NARROWEST = 3  # cells of a column that is wrapped
LONGEST_WORD = 16  # up to this width a column is kept as wide as its longest word
MOST_COLUMNS = 64


@dataclass(frozen=True, slots=True)
class Table:
    """A table's cells: `rows[0]` is the header; every row has as many cells as it."""

    rows: tuple[tuple[str, ...], ...]
    aligns: tuple[Align, ...]

    @classmethod
    def from_lines(cls, lines: Sequence[str]) -> Table:
        """Read the lines of a table block: header, delimiter, rows; missing cells are empty, extra ones cut."""
        header = table_cells(lines[0])[:MOST_COLUMNS]
        aligns = tuple[Align, ...](_align(mark) for mark in table_cells(lines[1])[:MOST_COLUMNS])
        rows = [header, *(table_cells(line) for line in lines[2:])]
        return cls(tuple(tuple([*row, *[""] * len(header)][: len(header)]) for row in rows), aligns)


def _align(mark: str) -> Align:
    if mark.endswith(":"):
        return "center" if mark.startswith(":") else "right"
    return "left"


def render_table(table: Table, width: int, style: str, parse: Parse) -> list[Row]:
    """The table in at most `width` cells."""
    head = join(style, "table_head")
    cells = [
        [parse(cell, head if index == 0 else style) for cell in row] for index, row in enumerate(table.rows)
    ]
    texts = [["".join(run.text for run in cell) for cell in row] for row in cells]
    widths = _fit(texts, width - 3 * len(table.aligns) - 1)
    if widths is None:
        return _records(cells, width, style)
    frame = join(style, "table_frame")
    rows = [_edge("┌┬┐", widths, frame)]
    for index, (row, text) in enumerate(zip(cells, texts, strict=True)):
        rows += _table_row(row, text, widths, table.aligns, frame)
        if index == 0:
            rows.append(_edge("├┼┤", widths, frame))
    rows.append(_edge("└┴┘", widths, frame))
    return rows


def _fit(texts: list[list[str]], room: int) -> list[int] | None:
    """The columns' widths, or None when they cannot fit. The widest columns give way first."""
    columns = list(zip(*texts, strict=True))
    natural = [max(1, *(_widest(text.split("\n")) for text in column)) for column in columns]
    least = [
        min(wanted, max(NARROWEST, *(_longest_word(t) for t in column)))
        for wanted, column in zip(natural, columns, strict=True)
    ]
    if sum(natural) <= room:
        return natural
    if sum(least) > room:
        return None
    # The level L at which columns of min(natural, max(L, least)) cells just fit.
    low, high = 1, max(natural)
    while low < high:
        level = (low + high + 1) // 2
        if sum(min(wanted, max(level, bound)) for wanted, bound in zip(natural, least, strict=True)) <= room:
            low = level
        else:
            high = level - 1
    widths = [min(wanted, max(low, bound)) for wanted, bound in zip(natural, least, strict=True)]
    spare = room - sum(widths)
    for index, wanted in enumerate(natural):
        if spare and widths[index] < wanted:
            widths[index] += 1
            spare -= 1
    return widths


def _longest_word(text: str) -> int:
    return min(LONGEST_WORD, _widest(text.split()))


def _widest(pieces: Sequence[str]) -> int:
    return max((cell_len(piece) for piece in pieces), default=0)


def _edge(signs: str, widths: Sequence[int], frame: str) -> Row:
    left, middle, right = signs
    line = left + middle.join("─" * (width + 2) for width in widths) + right
    return Row((Run(line, frame),), prefix=len(line))


def _table_row(
    cells: Sequence[list[Run]],
    texts: Sequence[str],
    widths: Sequence[int],
    aligns: Sequence[Align],
    frame: str,
) -> list[Row]:
    columns = [
        cut_runs(cell, wrap(text, width)) for cell, text, width in zip(cells, texts, widths, strict=True)
    ]
    rows: list[Row] = []
    for pieces in zip_longest(*columns, fillvalue=()):
        runs: list[Run] = [Run("│ ", frame)]
        for index, (piece, width, align) in enumerate(zip(pieces, widths, aligns, strict=True)):
            if index:
                runs.append(Run(" │ ", frame))
            runs += _aligned(piece, width, align)
        runs.append(Run(" │", frame))
        rows.append(Row(tuple(runs), prefix=2))
    return rows


def _aligned(piece: Sequence[Run], width: int, align: Align) -> list[Run]:
    spare = max(0, width - sum(cell_len(run.text) for run in piece))
    before = {"left": 0, "right": spare, "center": spare // 2}[align]
    padded = [Run(" " * before), *piece, Run(" " * (spare - before))]
    return [run for run in padded if run.text]


def _records(cells: Sequence[Sequence[list[Run]]], width: int, style: str) -> list[Row]:
    """One line a cell, `header: value`, and a rule between records."""
    header, *records = cells
    rule = Row((Run("─" * width, join(style, "table_frame")),), prefix=width)
    rows: list[Row] = []
    for record in records:
        rows.append(rule)
        for name, value in zip(header, record, strict=True):
            runs = [*name, Run(": ", join(style, "table_head")), *value]
            slices = wrap("".join(run.text for run in runs), width)
            rows += [
                Row(cut, joint=part.joint) for cut, part in zip(cut_runs(runs, slices), slices, strict=True)
            ]
    return [*rows, rule] if rows else [Row(tuple(run for cell in header for run in cell))]
