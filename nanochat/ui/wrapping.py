"""Breaking a line of text into rows of so many terminal cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len

from nanochat.ui.rows import Run

#: A character and what joins it into one cell: combining marks, variation selectors, skin tones, joiners.
CLUSTER = re.compile(
    r".[\u0300-\u036f\u200c\u20d0-\u20ff\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]*"
    r"(?:\u200d.?[\u0300-\u036f\u20d0-\u20ff\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]*)*",
    re.DOTALL,
)
#: Closing punctuation that must not begin a row (the commonest of UAX 14's classes CL, CP and EX).
NOT_FIRST = frozenset("、。，．：；？！）」』】〕》〉”’…)]}!?,.:;%")


class Slice(NamedTuple):
    """Characters `start` to `end` of a text make one row; `joint` is what stood before them."""

    start: int
    end: int
    joint: str


def wrap(text: str, width: int) -> list[Slice]:
    """Break at line ends, then at blanks, and inside a word only when it is wider than a row.

    Blanks at a break are left out. Between wide characters (Chinese, Japanese) a break is always allowed. At
    least one slice comes back. `width` in cells, at least 2.
    """
    slices: list[Slice] = []
    start = 0
    for line in text.split("\n"):
        breaks = _wrap_ascii if line.isascii() else _wrap_clusters
        joint = "\n"
        for begin, end, blank in breaks(line, max(2, width)):
            slices.append(Slice(start + begin, start + end, joint))
            joint = " " if blank else ""
        start += len(line) + 1
    return slices


def _wrap_ascii(line: str, width: int) -> Iterator[tuple[int, int, bool]]:
    start, length = 0, len(line)
    while length - start > width:
        end = start + width
        if line[end] != " ":
            found = line.rfind(" ", start, end)
            end = found if found > start and line[start:found].strip() else end
        blank = line[end] == " " or line[end - 1] == " "
        yield start, start + len(line[start:end].rstrip(" ")), blank
        start = end
        while start < length and line[start] == " ":
            start += 1
    yield start, length, False


def _wrap_clusters(line: str, width: int) -> Iterator[tuple[int, int, bool]]:
    start = used = 0
    opportunity: tuple[int, int, bool] | None = (
        None  # where a row may end, where the next begins, blank between
    )
    cells = 0  # cells from the opportunity's next row on
    wide_before = False
    for found in CLUSTER.finditer(line):
        at, cluster = found.start(), found[0]
        size = cell_len(cluster)
        if cluster == " ":
            opportunity, cells = (at, found.end(), True), 0
            used += 1
            wide_before = False
            continue
        breakable = size == 2 or wide_before
        if (
            breakable
            and at > start
            and cluster[0] not in NOT_FIRST
            and (opportunity is None or opportunity[1] < at)
        ):
            opportunity, cells = (at, at, False), 0
        while used + size > width and at > start:
            if opportunity is None or opportunity[0] <= start:
                opportunity, cells = (at, at, False), 0
            yield start, start + len(line[start : opportunity[0]].rstrip(" ")), opportunity[2]
            start, used, opportunity = opportunity[1], cells, None
        used += size
        cells += size
        wide_before = size == 2
    yield start, len(line) if used <= width else start + len(line[start:].rstrip(" ")), False


def cut_runs(runs: Sequence[Run], slices: Sequence[Slice]) -> list[tuple[Run, ...]]:
    """The runs of each slice; slices are in order, over the runs' joined text."""
    rows: list[tuple[Run, ...]] = []
    index = offset = 0  # the run that the slice begins in, and where that run begins
    for begin, end, _ in slices:
        while index < len(runs) and offset + len(runs[index].text) <= begin:
            offset += len(runs[index].text)
            index += 1
        row: list[Run] = []
        at, position = index, offset
        while at < len(runs) and position < end:
            run = runs[at]
            piece = run.text[max(begin - position, 0) : end - position]
            if piece:
                row.append(run if piece == run.text else Run(piece, run.style, run.action))
            position += len(run.text)
            at += 1
        rows.append(tuple(row))
    return rows
