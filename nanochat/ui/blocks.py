"""A growing Markdown text, split into blocks as it comes: only the last, open block ever changes.

Every line is read once, so the cost is linear, and only whole lines change the state, so the result is
the same whatever way the text was cut into pieces. What an unfinished line looks like is worked out on a
copy of the state (`BlockSplitter.tail`) and thrown away. Lines and paragraphs are cut at `LONGEST`
characters, so that no text, however odd, makes one block that takes long to draw.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.ui.block import GROWING, Block
from nanochat.ui.block_parser import LONGEST, BlockParser
from nanochat.ui.block_syntax import HALF_MARKER

__all__ = ["LONGEST", "Block", "BlockSplitter", "Tail"]


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands from block `start` on, an unfinished line included.

    When `partial` is not None, it is the unfinished last line of blocks[0], which is the open block itself.
    """

    start: int
    blocks: tuple[Block, ...]
    partial: str | None = None


class BlockSplitter:
    """Takes text in pieces; `blocks` grows. All but the open one, the last, are final."""

    def __init__(self) -> None:
        self._parser = BlockParser()
        self._partial = ""
        self._inside = False  # within a line that was longer than LONGEST

    @property
    def blocks(self) -> list[Block]:
        """The blocks of all whole lines so far."""
        return self._parser.blocks

    @property
    def settled(self) -> int:
        """How many of `blocks` will never change."""
        return len(self._parser.blocks) - (self._parser.leaf is not None)

    def feed(self, piece: str) -> None:
        """Take the next piece of the text."""
        *lines, self._partial = (self._partial + piece).split("\n")
        for line in lines:
            self._read(self._cut(line))
            self._inside = False
        self._partial = self._cut(self._partial)

    def finish(self) -> None:
        """Take what is left as the last line, and close every block."""
        if self._partial:
            self._read(self._partial)
        self._partial, self._inside = "", False
        self._parser.close()

    def tail(self) -> Tail:
        """The blocks that are not final, with the unfinished line; half a marker is held back."""
        leaf, partial = self._parser.leaf, self._partial
        committed = Tail(self.settled, () if leaf is None else (leaf,))
        if not partial:
            return committed
        growing = leaf is not None and leaf.kind in GROWING
        if not self._inside and not growing and HALF_MARKER.match(partial):
            return committed
        trial = self._parser.trial()
        if self._inside:
            trial.read_on(partial)
        else:
            trial.read(partial)
        if leaf is None or not growing:
            return Tail(committed.start, tuple(trial.blocks))
        stand_in, *after = trial.blocks
        if after:
            return committed if HALF_MARKER.match(partial) else Tail(committed.start, (leaf, *after))
        if stand_in.closed or not stand_in.lines:
            return committed
        bare = partial.strip(" \t>")
        if leaf.kind == "fence" and bare and leaf.fence.startswith(bare):
            return committed
        return Tail(committed.start, (leaf,), stand_in.lines[-1])

    def _read(self, line: str) -> None:
        if self._inside:
            self._parser.read_on(line)
        else:
            self._parser.read(line)

    def _cut(self, line: str) -> str:
        """Read the front of a line that is too long, again and again; returns what is left of it."""
        while len(line) > LONGEST:
            at = line.rfind(" ", LONGEST // 2, LONGEST) + 1 or LONGEST
            self._read(line[:at])
            self._inside = True
            line = line[at:]
        return line
