"""The blocks of one text, drawn one under the other at a width; a flush redraws the open one only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.ui.block_parser import GROWING, Block
from nanochat.ui.blocks import BlockSplitter
from nanochat.ui.code_view import CodeView
from nanochat.ui.markdown import MarkdownRenderer, gap_before
from nanochat.ui.rows import Row


@dataclass(slots=True)
class _Part:
    """One block: the blank row before it, if any, and its rows."""

    block: Block
    gap: list[Row]
    body: list[Row] | CodeView
    top: int

    @property
    def height(self) -> int:
        return len(self.gap) + (self.body.height if isinstance(self.body, CodeView) else len(self.body))

    def row(self, y: int) -> Row:
        if y < len(self.gap):
            return self.gap[y]
        y -= len(self.gap)
        return self.body.row(y) if isinstance(self.body, CodeView) else self.body[y]


class BlockStack:
    """A growing Markdown text as rows. `style` lies under everything in it."""

    def __init__(self, renderer: MarkdownRenderer, style: str = "") -> None:
        self._renderer = renderer
        self._style = style
        self._splitter = BlockSplitter()
        self._parts: list[_Part] = []
        self._settled = 0  # parts that are final
        self._width = 0
        self._stale = True
        self._uncoloured: list[CodeView] = []
        self._changed = 0  # the first row that has changed since it was asked for

    @property
    def height(self) -> int:
        """Rows, as of the last `layout`."""
        return self._parts[-1].top + self._parts[-1].height if self._parts else 0

    def feed(self, text: str) -> None:
        """Add a piece of the text."""
        self._splitter.feed(text)
        self._stale = True

    def finish(self) -> None:
        """The text is complete."""
        self._splitter.finish()
        self._stale = True

    def layout(self, width: int) -> None:
        """Draw what has changed since the last time, or everything when the width is another."""
        if width != self._width:
            self._width = width
            self._parts, self._settled, self._uncoloured = [], 0, []
            self._changed = 0
        elif not self._stale:
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
        self.highlight()

    def highlight(self) -> bool:
        """Work on the colours of finished code for a moment; whether there is nothing left to do."""
        if self._uncoloured and self._uncoloured[-1].highlight():
            view = self._uncoloured.pop()
            self._changed = min([self._changed, *(part.top for part in self._parts if part.body is view)])
        return not self._uncoloured

    def take_changed(self) -> int:
        """The first row that has changed since the last call; `height` when none has."""
        changed, self._changed = self._changed, self.height
        return min(changed, self.height)

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        part = self._part(y)
        return part.row(y - part.top)

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y` (decoration left out) say in the text: tabs of code are kept."""
        part = self._part(y)
        inner = y - part.top - len(part.gap)
        if isinstance(part.body, CodeView) and inner >= 0:
            return part.body.source(inner, begin, end)
        row = part.row(y - part.top)
        return row.text[row.prefix :][begin:end]

    def codes(self) -> Iterator[tuple[str, int, int, Block]]:
        """Key, top row, height and block of every fence."""
        for part in self._parts:
            if isinstance(part.body, CodeView) and part.block.kind == "fence":
                yield part.body.key, part.top + len(part.gap), part.body.height, part.block

    def _part(self, y: int) -> _Part:
        return self._parts[bisect_right(self._parts, y, key=lambda part: part.top) - 1]

    def _place(self, block: Block, kept: list[_Part], partial: str | None, *, unfinished: bool) -> None:
        before = self._parts[-1] if self._parts else None
        top = before.top + before.height if before else 0
        index = len(self._parts)
        for part in kept:
            if part.block is block and isinstance(part.body, CodeView) and _verbatim(block):
                self._changed = min(self._changed, top + len(part.gap) + part.body.sync(partial))
                part.top = top
                self._parts.append(part)
                self._watch(part.body)
                return
        self._changed = min(self._changed, top)
        gap = gap_before(block, before.block if before else None, self._style)
        if _verbatim(block):
            body = CodeView(block, self._width, str(index), self._style)
            if partial is not None:
                body.sync(partial)
            self._watch(body)
        else:
            body = self._renderer.rows(block, self._width, self._style, unfinished=unfinished)
        self._parts.append(_Part(block, gap, body, top))

    def _watch(self, view: CodeView) -> None:
        if view.block.closed and view.block.kind == "fence":
            self._uncoloured.append(view)


def _verbatim(block: Block) -> bool:
    return block.kind in GROWING and not (block.kind == "table" and block.closed)
