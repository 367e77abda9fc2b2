"""The blocks of one text, one under the other; only those that are looked at are drawn.

A block that was never on screen has an estimated height. A flush redraws the open block only, and only when it
was drawn before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.ui.block import GROWING, Block
from nanochat.ui.blocks import BlockSplitter
from nanochat.ui.code_view import CodeView
from nanochat.ui.markdown import MEASURE, MarkdownRenderer, gap_before
from nanochat.ui.rows import BLANK, Row


@dataclass(slots=True)
class _Part:
    """One block: the blank row before it, if any, and its rows once they are drawn."""

    block: Block
    gap: list[Row]
    top: int
    inner: int  # height of the body: exact once it was drawn at this width
    exact: bool = False
    body: list[Row] | CodeView | None = None
    unfinished: bool = False

    @property
    def height(self) -> int:
        return len(self.gap) + self.inner

    @property
    def code(self) -> CodeView | None:
        return self.body if isinstance(self.body, CodeView) else None


class BlockStack:
    """A growing Markdown text as rows. `style` lies under everything in it."""

    def __init__(self, renderer: MarkdownRenderer, style: str = "") -> None:
        self._renderer = renderer
        self._style = style
        self._splitter = BlockSplitter()
        self._parts: list[_Part] = []
        self._settled = 0  # parts whose block is final
        self._width = 0
        self._stale = True
        self._changed = 0  # the first row that has changed since it was asked for

    # The text

    def feed(self, text: str) -> None:
        """Add a piece of the text."""
        self._splitter.feed(text)
        self._stale = True

    def finish(self) -> None:
        """The text is complete."""
        self._splitter.finish()
        self._stale = True

    # Layout

    @property
    def height(self) -> int:
        """Rows, as of the last `layout` or `draw`; estimated where nothing was drawn yet."""
        return self._parts[-1].top + self._parts[-1].height if self._parts else 0

    def layout(self, width: int) -> None:
        """Take in what was added to the text since the last time."""
        if width != self._width:
            self._resize(width)
        if not self._stale:
            return
        self._stale = False
        tail = self._splitter.tail()
        kept = self._parts[self._settled :]
        del self._parts[self._settled :]
        for block in self._splitter.blocks[self._settled : tail.start]:
            self._place(block, kept, None, unfinished=False)
        self._settled = tail.start
        for index, block in enumerate(tail.blocks):
            self._place(block, kept, tail.partial if index == 0 else None, unfinished=True)

    def draw(self, first: int, end: int) -> bool:
        """Draw the blocks that rows `first` to `end` (exclusive) show; False when they all were drawn."""
        start = index = max(0, self._index(first))
        top = self._parts[start].top if self._parts else 0
        drew = False
        while index < len(self._parts) and top < end:
            part = self._parts[index]
            part.top = top
            if part.body is None:
                self._draw(part)
                drew = True
            top += part.height
            index += 1
        if drew:
            self._restack(index)
            self._changed = min(self._changed, self._parts[start].top)
        return drew

    def release(self) -> None:
        """Forget what is drawn; heights are kept."""
        for part in self._parts:
            if part.code is None:
                part.body = None

    def highlight(self, first: int, end: int) -> bool:
        """Work on the colours of finished code in these rows for a moment; whether nothing is left to do."""
        for part in self._parts[max(0, self._index(first)) :]:
            if part.top >= end:
                break
            if part.code is not None and not part.code.coloured:
                if part.code.highlight():
                    self._changed = min(self._changed, part.top)
                return False
        return True

    def take_changed(self) -> int:
        """The first row that has changed since the last call; `height` when none has."""
        changed, self._changed = min(self._changed, self.height), self.height
        return changed

    # Rows

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        part = self._parts[self._index(y)]
        y -= part.top
        if y < len(part.gap):
            return part.gap[y]
        y -= len(part.gap)
        if part.code is not None:
            return part.code.row(y)
        body = part.body if isinstance(part.body, list) else self._rows(part)
        if part.exact:
            part.body = body
        return body[y] if y < len(body) else BLANK  # an estimate was too high

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y` (decoration left out) say in the text: code keeps its tabs."""
        part = self._parts[self._index(y)]
        inner = y - part.top - len(part.gap)
        if part.code is not None and inner >= 0:
            return part.code.source(inner, begin, end)
        row = self.row(y)
        return row.text[row.prefix :][begin:end]

    def exact(self, first: int, end: int) -> int | None:
        """The first row from `first` to `end` (exclusive) whose block's height is known."""
        for part in self._parts[max(0, self._index(first)) :]:
            if part.top >= end:
                break
            if part.exact:
                return max(first, part.top)
        return None

    def locate(self, y: int) -> tuple[int, int, tuple[int, int] | None]:
        """The block that row `y` is in, and the row's number in it; in code, also the line and its character."""
        index = self._index(y)
        part = self._parts[index]
        row = y - part.top
        inner = row - len(part.gap)
        return index, row, part.code.locate(inner) if part.code is not None and inner >= 0 else None

    def find(self, index: int, row: int, line: tuple[int, int] | None = None) -> int:
        """The row that `locate` named, where it is now."""
        if index >= len(self._parts):
            return max(0, self.height - 1)
        part = self._parts[index]
        if part.code is not None and line is not None:
            return part.top + len(part.gap) + part.code.find(*line)
        return part.top + min(row, max(0, part.height - 1))

    def codes(self) -> Iterator[tuple[str, int, int, Block]]:
        """Key, top row, height and block of every fence."""
        for part in self._parts:
            if part.code is not None and part.block.kind == "fence":
                yield part.code.key, part.top + len(part.gap), part.inner, part.block

    # Parts

    def _index(self, y: int) -> int:
        return bisect_right(self._parts, y, key=lambda part: part.top) - 1

    def _place(self, block: Block, kept: list[_Part], partial: str | None, *, unfinished: bool) -> None:
        before = self._parts[-1] if self._parts else None
        top = before.top + before.height if before else 0
        old = next((part for part in kept if part.top == top), None)
        if old is not None and old.block is block and old.code is not None and _verbatim(block):
            self._changed = min(self._changed, top + len(old.gap) + old.code.sync(partial))
            old.inner = old.code.height
            self._parts.append(old)
            return
        gap = gap_before(block, before.block if before else None, self._style)
        part = _Part(block, gap, top, self._estimate(block), unfinished=unfinished)
        self._parts.append(part)
        changed = top
        if _verbatim(block):
            part.body = CodeView(block, self._width, str(len(self._parts) - 1), self._style)
            part.body.sync(partial)
            part.inner, part.exact = part.body.height, True
        elif old is not None and isinstance(old.body, list):
            body = self._draw(part)
            if old.gap == gap:
                changed += len(gap) + _keep_same(old.body, body)
        self._changed = min(self._changed, changed)

    def _draw(self, part: _Part) -> list[Row]:
        rows = self._rows(part)
        part.body, part.inner, part.exact = rows, len(rows), True
        return rows

    def _rows(self, part: _Part) -> list[Row]:
        return self._renderer.rows(part.block, self._width, self._style, unfinished=part.unfinished)

    def _resize(self, width: int) -> None:
        self._width = width
        self._changed = 0
        for part in self._parts:
            if part.code is not None:
                part.code.resize(width)
                part.inner = part.code.height
            else:
                part.body, part.exact = None, False
                part.inner = self._estimate(part.block)
        self._restack(0)

    def _restack(self, start: int) -> None:
        top = self._parts[start - 1].top + self._parts[start - 1].height if start else 0
        for part in self._parts[start:]:
            part.top = top
            top += part.height

    def _estimate(self, block: Block) -> int:
        width = max(8, min(self._width, MEASURE) - 2 * len(block.containers))
        rows = sum(1 + max(0, len(line) - 1) // width for line in block.lines)
        return max(1, rows + 2 if block.kind == "table" else rows)


def _keep_same(old: list[Row], new: list[Row]) -> int:
    """Put the rows that did not change in the place of their likes, which are painted; how many came first."""
    for index, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return index
        new[index] = one
    return min(len(old), len(new))


def _verbatim(block: Block) -> bool:
    return block.kind in GROWING and not (block.kind == "table" and block.closed)
