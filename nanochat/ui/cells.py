"""Text in so many terminal cells: what is longer is cut and ends in an ellipsis, what is shorter is filled."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def cut(text: str, width: int) -> str:
    """Of at most `width` cells."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


def fixed(text: str, width: int, *, right: bool = False) -> str:
    """Of `width` cells; `right`, with the text at their end."""
    text = cut(text, width)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank
