"""A block of Markdown -> rows: headings, paragraphs, rules and tables, inside their quotes and list items."""

from __future__ import annotations

from dataclasses import replace

from rich.cells import cell_len

from nanochat.ui.block import Block, Container
from nanochat.ui.inline import InlineParser, join
from nanochat.ui.rows import Row, Run
from nanochat.ui.tables import Table, render_table
from nanochat.ui.wrapping import cut_runs, wrap

BULLETS = "•○▪·"
TASKS = {"[ ] ": "□ ", "[x] ": "✓ ", "[X] ": "✓ "}
#: Cells below which a block is not narrowed any further by what stands around it.
NARROWEST = 8
#: Cells after which a line of prose is hard to read.
MEASURE = 100


class MarkdownRenderer:
    """Draws blocks as rows that are at most so many cells wide."""

    def __init__(self) -> None:
        self._inline = InlineParser()

    def rows(self, block: Block, width: int, style: str = "", *, unfinished: bool = False) -> list[Row]:
        """The rows of a paragraph, heading, rule or table; `unfinished`: its last line is still coming."""
        first, rest = margins(block, style)
        room = max(NARROWEST, width - margin_cells(rest))
        if block.kind == "table" and block.closed:
            rows = render_table(Table.from_lines(block.lines), room, style, self._inline.parse)
        elif block.kind == "rule":
            line = "─" * min(room, MEASURE)
            rows = [Row((Run(line, join(style, "rule")),), prefix=len(line))]
        else:
            rows = self._prose(block, min(room, MEASURE), style, unfinished)
        return [_inside(row, first if index == 0 else rest) for index, row in enumerate(rows)]

    def _prose(self, block: Block, width: int, style: str, unfinished: bool) -> list[Row]:
        text = block.text
        if block.kind == "heading":
            style = join(style, f"h{block.level}")
        if task_marker(block):
            text = text[4:]
        runs = self._inline.parse(text, style, unfinished=unfinished and not block.closed)
        slices = wrap("".join(run.text for run in runs), width)
        rows = [Row(cut, joint=part.joint) for cut, part in zip(cut_runs(runs, slices), slices, strict=True)]
        return [replace(rows[0], joint=""), *rows[1:]] if block.joined else rows


def task_marker(block: Block) -> str:
    """The sign of a task list's item, when the block begins one."""
    if block.kind != "paragraph" or not block.fresh or block.containers[-1].kind != "item":
        return ""
    return TASKS.get(block.lines[0][:4] if block.lines else "", "")


def margins(block: Block, style: str = "") -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """What stands left of a block: before its first row, and before all others."""
    bar = [Run("│ ", join(style, "reasoning_bar"))] if "reasoning" in style.split() else []
    first, rest = list(bar), list(bar)
    bullets = 0
    begins = len(block.containers) - block.fresh
    for index, container in enumerate(block.containers):
        if container.kind == "quote":
            quote = Run("▌ ", join(style, "quote_bar"))
            first.append(quote)
            rest.append(quote)
            continue
        marker = (
            f"{container.number}. "
            if container.marker in (".", ")")
            else BULLETS[bullets % len(BULLETS)] + " "
        )
        bullets += container.marker not in (".", ")")
        blank = Run(" " * len(marker))
        if index == len(block.containers) - 1:
            marker = task_marker(block).ljust(len(marker)) if task_marker(block) else marker
        first.append(Run(marker, join(style, "marker")) if index >= begins else blank)
        rest.append(blank)
    return tuple(first), tuple(rest)


def margin_cells(runs: tuple[Run, ...]) -> int:
    """The width of a margin."""
    return sum(cell_len(run.text) for run in runs)


def gap_before(block: Block, before: Block | None, style: str = "") -> list[Row]:
    """The blank row between two blocks, if there is one: within a list, where the text had it."""
    if before is None or block.joined:
        return []
    shared = 0
    for one, other in zip(before.containers, block.containers, strict=False):
        if not _same(one, other):
            break
        shared += 1
    within_list = any(container.kind == "item" for container in block.containers[:shared])
    boxed = {before.kind, block.kind} & {"fence", "code", "table"}
    if within_list and not block.gap and not boxed:
        return []
    common = Block("paragraph", [""], block.containers[: _quotes(block, shared)])
    runs = margins(common, style)[1]
    return [Row(runs, prefix=sum(len(run.text) for run in runs))]


def _same(one: Container, other: Container) -> bool:
    return one.kind == other.kind and one.list_id == other.list_id


def _quotes(block: Block, shared: int) -> int:
    """How many of the shared containers go on over the gap: none after the last quote shows."""
    begins = len(block.containers) - block.fresh
    going_on = min(shared, begins)
    return max((i + 1 for i in range(going_on) if block.containers[i].kind == "quote"), default=0)


def _inside(row: Row, margin: tuple[Run, ...]) -> Row:
    if not margin:
        return row
    return replace(row, runs=(*margin, *row.runs), prefix=row.prefix + sum(len(run.text) for run in margin))
