"""Text selected with the mouse: how it is marked, and what it was before it was wrapped and decorated."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.selection import Selection
from textual.strip import Strip

from nanochat.ui.conversation_view import ConversationView
from nanochat.ui.rows import Row
from nanochat.ui.widgets.row_painter import GUTTER


class Numbering:
    """The number that the first row has in selections: selected rows keep theirs while heights above change."""

    def __init__(self) -> None:
        self.origin = 1_000_000  # far from 0, which rows above would cross

    @contextmanager
    def kept(self, view: ConversationView | None, selection: Selection | None) -> Generator[None]:
        """While the rows of `view` are laid out anew, hold on to where the selection begins."""
        end = None if selection is None else selection.start or selection.end
        row = 0 if end is None else end.y - self.origin
        place = None if view is None or end is None else view.locate(row)
        yield
        if view is not None and place is not None:
            self.origin += row - view.find(place)


def mark(strip: Strip, row: Row, selection: Selection, number: int, style: Style) -> Strip:
    """The strip of row `number` with what is selected of it in `style`; decoration is never selected."""
    span = selection.get_span(number)
    if span is None:
        return strip
    length = GUTTER + len(row.text)
    end = length if span[1] < 0 else min(span[1], length)
    begin = min(max(span[0], GUTTER + row.prefix), end)
    if begin == end:
        return strip
    text = strip.text
    start, stop = cell_len(text[:begin]), cell_len(text[:end])
    marked = Strip(Segment.apply_style(strip.crop(start, stop), post_style=style), stop - start)
    return Strip.join([strip.crop(0, start), marked, strip.crop(stop)])


def selected_text(view: ConversationView, selection: Selection, origin: int) -> str:
    """What is selected, as it was written: wrapped lines are whole, tabs of code are kept.

    Rows are numbered from `origin` in the selection.
    """
    first = 0 if selection.start is None else max(0, selection.start.y - origin)
    last = view.height - 1 if selection.end is None else min(view.height - 1, selection.end.y - origin)
    parts: list[str] = []
    for index in range(first, last + 1):
        span = selection.get_span(index + origin)
        if span is None:
            continue
        row, _ = view.row(index)
        offset = GUTTER + row.prefix
        end = len(row.text) if span[1] < 0 else max(0, span[1] - offset)
        parts += [row.joint if parts else "", view.source(index, max(0, span[0] - offset), end)]
    return "".join(parts)
