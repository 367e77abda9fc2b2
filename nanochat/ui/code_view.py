"""Code as it grows: each line is measured once, and a row is made only when it is looked at."""

from __future__ import annotations

from bisect import bisect_right

from rich.cells import cell_len

from nanochat.ui.block import Block
from nanochat.ui.highlighting import TAB, Highlighter, find_lexer
from nanochat.ui.inline import join
from nanochat.ui.markdown import NARROWEST, margin_cells, margins
from nanochat.ui.rows import Row, Run
from nanochat.ui.wrapping import CLUSTER, Slice, cut_runs

#: Seconds that highlighting may take at once, as part of a flush.
SLICE = 0.004
MOST_KEPT = 400


class CodeView:
    """A fence, indented code, mathematics, or a table that is not finished.

    `sync` takes in the lines that have come since; its cost is theirs. `row(y)` draws. A fence has a head with
    its language and a word to copy it; its lines have their own background, `width` cells wide.
    """

    def __init__(self, block: Block, width: int, key: str = "", style: str = "") -> None:
        self.block = block
        self.key = key
        self._style = style
        self._first, self._rest = margins(block, style)
        self._panel = block.kind in ("fence", "code")
        self._head = 1 if block.kind == "fence" else 0
        self._lines: list[str] = []  # tabs expanded
        self._tops: list[int] = []  # the row that each line begins on, the head not counted
        self._rows = 0
        self._kept: dict[int, Row] = {}  # rows that were looked at
        self._partial = False
        self._highlighter: Highlighter | None = None
        self._runs: list[list[Run]] | None = None
        self.resize(width)
        self.sync(None)

    @property
    def height(self) -> int:
        """Rows, the head included; at least one."""
        return max(1, self._head + self._rows)

    def resize(self, width: int) -> None:
        """Draw as wide as this from now on; colours are kept."""
        self._width = max(NARROWEST, width - margin_cells(self._rest))
        self._room = max(2, self._width - 2 if self._panel else self._width)
        self._kept.clear()
        lines, self._lines, self._tops, self._rows = self._lines, [], [], 0
        for line in lines:
            self._add_line(line)

    def sync(self, partial: str | None) -> int:
        """Take in new lines of the block, and the line that is still coming; returns the first row that changed."""
        if self._partial:
            self._drop_line()
        while len(self._lines) > len(self.block.lines):
            self._drop_line()  # blank lines at the end of indented code are not part of it
        changed = self._head + self._rows
        self._kept = (
            {y: row for y, row in self._kept.items() if y < changed} if len(self._kept) < MOST_KEPT else {}
        )
        for line in self.block.lines[len(self._lines) :]:
            self._add_line(line)
        self._partial = partial is not None
        if partial is not None:
            self._add_line(partial)
        return changed

    @property
    def coloured(self) -> bool:
        """Whether there is nothing left to highlight: an open block, and what is no fence, never has anything."""
        done = self._runs is not None or not self.block.closed
        return done or self.block.kind != "fence" or bool(self.block.continued)

    def highlight(self) -> bool:
        """Work on the colours of finished code for a moment; whether there is nothing left to do."""
        if (
            not self.block.closed
            or self._runs is not None
            or self.block.kind != "fence"
            or self.block.continued
        ):
            return True
        if self._highlighter is None:
            lexer = find_lexer(self.block.language)
            if lexer is None:
                self._runs = []
                return True
            self._highlighter = Highlighter(self.block.text, lexer)
        if not self._highlighter.work(SLICE):
            return False
        lines = self._highlighter.lines
        same = all(
            "".join(run.text for run in runs) == line for runs, line in zip(lines, self._lines, strict=False)
        )
        self._runs = lines if same else []
        self._kept.clear()
        self._highlighter = None
        return True

    def row(self, y: int) -> Row:
        """Row `y`, from 0 to `height` - 1."""
        row = self._kept.get(y)
        if row is None:
            row = self._kept[y] = self._row(y)
        return row

    def _row(self, y: int) -> Row:
        margin = self._first if y == 0 else self._rest
        if self._head and y == 0:
            return self._head_row(margin)
        y -= self._head
        if y >= self._rows:
            return self._framed(margin, (), "\n", continued=False)
        index = bisect_right(self._tops, y) - 1
        line = self._lines[index]
        part = self._chop(line)[y - self._tops[index]]
        begins = part.start == 0
        joint = "\n" if begins and index not in self.block.continued else ""
        return self._framed(margin, self._runs_of(index, part), joint, continued=not begins)

    def locate(self, y: int) -> tuple[int, int]:
        """The line that row `y` shows, -1 for the head, and the character of it that the row begins with."""
        y -= self._head
        if y < 0 or not self._lines:
            return -1, 0
        index = max(0, bisect_right(self._tops, y) - 1)
        parts = self._chop(self._lines[index])
        return index, parts[min(y - self._tops[index], len(parts) - 1)].start

    def find(self, line: int, start: int) -> int:
        """The row that shows character `start` of a line, at whatever width; the last row when the line is gone."""
        if line < 0:
            return 0
        if line >= len(self._lines):
            return self.height - 1
        parts = self._chop(self._lines[line])
        return (
            self._head
            + self._tops[line]
            + max(0, bisect_right(parts, start, key=lambda part: part.start) - 1)
        )

    def source(self, y: int, begin: int, end: int) -> str:
        """What characters `begin` to `end` of row `y` (decoration left out) are in the code: tabs are kept."""
        if y < self._head or y - self._head >= self._rows:
            return ""
        index = bisect_right(self._tops, y - self._head) - 1
        part = self._chop(self._lines[index])[y - self._head - self._tops[index]]
        raw = self.block.lines[index] if index < len(self.block.lines) else self._lines[index]
        begin, end = part.start + begin, min(part.start + end, part.end)
        column = 0
        found: list[str] = []
        for character in raw:
            size = TAB - column % TAB if character == "\t" else 1
            if begin <= column < end:
                found.append(character)
            column += size
        return "".join(found)

    def _add_line(self, line: str) -> None:
        expanded = line.expandtabs(TAB)
        self._lines.append(expanded)
        self._tops.append(self._rows)
        self._rows += len(self._chop(expanded))

    def _drop_line(self) -> None:
        self._lines.pop()
        self._rows = self._tops.pop()

    def _chop(self, line: str) -> list[Slice]:
        """Code is cut at the edge, wherever that falls: columns stay columns."""
        if line.isascii():
            starts = range(0, max(1, len(line)), self._room)
            return [Slice(start, min(start + self._room, len(line)), "") for start in starts]
        slices: list[Slice] = []
        start = used = 0
        for found in CLUSTER.finditer(line):
            size = cell_len(found[0])
            if used + size > self._room and found.start() > start:
                slices.append(Slice(start, found.start(), ""))
                start, used = found.start(), 0
            used += size
        return [*slices, Slice(start, len(line), "")]

    def _runs_of(self, index: int, part: Slice) -> tuple[Run, ...]:
        if not self._runs or index >= len(self._runs):
            text = self._lines[index][part.start : part.end]
            return (Run(text, self._base),) if text else ()
        (runs,) = cut_runs(self._runs[index], [part])
        return tuple(Run(run.text, join(self._base, run.style)) for run in runs)

    @property
    def _base(self) -> str:
        name = {"fence": "panel", "code": "panel", "math": "math", "table": "raw"}.get(self.block.kind, "")
        return join(self._style, name)

    def _framed(self, margin: tuple[Run, ...], runs: tuple[Run, ...], joint: str, *, continued: bool) -> Row:
        prefix = sum(len(run.text) for run in margin)
        if not self._panel:
            return Row((*margin, *runs), prefix=prefix, joint=joint)
        pad = Run("›" if continued else " ", join(self._base, "panel_mark"))
        width = margin_cells(margin) + self._width
        return Row((*margin, pad, *runs), prefix=prefix + 1, joint=joint, fill=self._base, width=width)

    def _head_row(self, margin: tuple[Run, ...]) -> Row:
        head = join(self._style, "panel_head")
        label = self.block.language[: max(0, self._width - 8)]
        runs = (*margin, Run(f" {label}  ", head), Run("copy", join(head, "button"), ("copy", self.key)))
        length = sum(len(run.text) for run in runs)
        return Row(runs, prefix=length, fill=head, width=margin_cells(margin) + self._width)
