"""The state between two lines of Markdown: which containers and which leaf block are open."""

from __future__ import annotations

from dataclasses import replace

from nanochat.ui import block_syntax
from nanochat.ui.block import GROWING, Block, BlockKind, Container
from nanochat.ui.block_syntax import Cursor

#: Characters of a line, or of a paragraph, after which it is cut.
LONGEST = 2000
#: The indent of a list item that takes no more lines.
ENDED = 1_000_000


class BlockParser:
    """Reads whole lines; `blocks` grows, and `leaf`, when not None, is the open one at its end."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.leaf: Block | None = None
        self.containers: tuple[Container, ...] = ()
        self._marked = 0  # containers whose marker a block has already taken
        self._gap = False
        self._lists = 0

    def trial(self) -> BlockParser:
        """A copy to try a line on, with the open block alone in it.

        A growing block may be long: an empty one stands in for it and shows what would be added.
        """
        copy = BlockParser()
        copy.containers, copy._marked, copy._gap, copy._lists = (
            self.containers,
            self._marked,
            self._gap,
            self._lists,
        )
        if self.leaf is not None:
            lines = [] if self.leaf.kind in GROWING else list(self.leaf.lines)
            copy.leaf = replace(self.leaf, lines=lines, continued=set())
            copy.blocks.append(copy.leaf)
        return copy

    def read(self, line: str) -> None:
        """Take a whole line, without its end."""
        cursor = Cursor(line)
        matched = self._match_containers(cursor)
        inside = matched == len(self.containers)
        if inside and self.leaf is not None and self._continue_verbatim(self.leaf, cursor):
            return
        if cursor.blank:
            self._read_blank(matched)
            return
        started = self._start_containers(cursor, matched)
        if started:
            matched = len(self.containers)
            if cursor.blank:
                return
        paragraph = None if started or self.leaf is None or self.leaf.kind != "paragraph" else self.leaf
        if paragraph is not None and inside and self._promote(paragraph, cursor):
            return
        if self._start_leaf(cursor, matched, paragraph):
            return
        if paragraph is not None:  # when not inside, by lazy continuation
            if sum(map(len, paragraph.lines)) > LONGEST:
                self._open("paragraph", len(self.containers), [cursor.stripped], joined=True)
            else:
                paragraph.lines.append(cursor.stripped)
        elif (
            inside
            and not started
            and self.leaf is not None
            and self.leaf.kind == "table"
            and cursor.indent < 4
        ):
            self.leaf.lines.append(cursor.stripped)
        else:
            self._open("paragraph", matched, [cursor.stripped])

    def read_on(self, line: str) -> None:
        """Take more of the line that was read last: it was too long to come at once."""
        leaf = self.leaf
        if leaf is None or leaf.kind not in GROWING:
            self._open("paragraph", len(self.containers), [line], joined=True)
        elif leaf.kind == "table" and leaf.lines:
            leaf.lines[-1] += line
        else:
            if leaf.lines:
                leaf.continued.add(len(leaf.lines))
            leaf.lines.append(line)

    def close(self, depth: int = 0) -> None:
        """Close the leaf and the containers deeper than `depth`; an item with nothing in it still shows."""
        self._close_leaf()
        if depth >= len(self.containers):
            return
        unmarked = self.containers[max(depth, self._marked) :]
        if any(container.kind == "item" for container in unmarked):
            self._append(Block("paragraph", [""], closed=True))
        self.containers = self.containers[:depth]
        self._marked = min(self._marked, depth)

    # Containers

    def _match_containers(self, cursor: Cursor) -> int:
        """How many of the open containers this line continues; consumes their markers."""
        for index, container in enumerate(self.containers):
            if container.kind == "quote":
                if cursor.indent > 3 or not cursor.stripped.startswith(">"):
                    return index
                self._take_quote_marker(cursor)
            elif cursor.blank:
                if index == len(self.containers) - 1 and self._marked <= index:
                    return index  # an item may begin with one blank line only
            elif cursor.indent >= container.indent:
                cursor.skip_columns(container.indent)
            else:
                return index
        return len(self.containers)

    def _start_containers(self, cursor: Cursor, matched: int) -> bool:
        started = False
        while cursor.indent < 4 and not cursor.blank:
            depth = len(self.containers) if started else matched
            if cursor.stripped.startswith(">"):
                self.close(depth)
                self._take_quote_marker(cursor)
                self.containers += (Container("quote"),)
            elif not self._start_item(cursor, depth, started):
                break
            started = True
        return started

    @staticmethod
    def _take_quote_marker(cursor: Cursor) -> None:
        cursor.skip_blanks()
        cursor.skip_characters(1)
        if cursor.indent:
            cursor.skip_columns(1)

    def _start_item(self, cursor: Cursor, depth: int, started: bool) -> bool:
        line = cursor.stripped
        found = block_syntax.ITEM.match(line)
        if found is None or block_syntax.RULE.match(line):
            return False
        interrupts = (
            not started
            and self.leaf is not None
            and self.leaf.kind == "paragraph"
            and depth == len(self.containers)
        )
        if interrupts and (not line[found.end() :].strip() or (found[2] and int(found[2]) != 1)):
            return False
        marker = block_syntax.take_item_marker(cursor)
        assert marker is not None
        before = self.containers[depth] if depth < len(self.containers) else None
        if before is not None and before.kind == "item" and before.marker == marker.kind:
            item = replace(before, indent=marker.indent, number=before.number + 1)
        else:
            self._lists += 1
            item = Container("item", marker.indent, marker.kind, marker.number, self._lists)
        self.close(depth)
        self.containers += (item,)
        return True

    # Leaves

    def _continue_verbatim(self, leaf: Block, cursor: Cursor) -> bool:
        """Add a line to code or mathematics, where nothing else starts; False when it ended before."""
        if leaf.kind == "fence":
            if cursor.indent < 4 and block_syntax.ends_fence(cursor.stripped, leaf.fence):
                self._close_leaf()
            else:
                cursor.skip_columns(min(cursor.indent, leaf.indent))
                leaf.lines.append(cursor.rest)
            return True
        if leaf.kind == "code" and (cursor.blank or cursor.indent >= 4):
            cursor.skip_columns(4)
            leaf.lines.append(cursor.rest)
            return True
        if leaf.kind == "math" and not cursor.blank:
            leaf.lines.append(cursor.rest)
            if cursor.stripped.rstrip().endswith(block_syntax.MATH_ENDS[leaf.fence]):
                self._close_leaf()
            return True
        return False

    def _read_blank(self, matched: int) -> None:
        if matched < len(self.containers) and self.containers[matched].kind == "item":
            # An item that stays empty: it ends here, but the next item still belongs to its list.
            ended = replace(self.containers[matched], indent=ENDED)
            self.close(matched)
            self.containers += (ended,)
            self._marked = len(self.containers)
        else:
            self.close(matched)
        self._gap = True

    def _promote(self, paragraph: Block, cursor: Cursor) -> bool:
        """Turn the paragraph, or its last line, into a table or a heading when this line says so."""
        line = cursor.stripped
        if cursor.indent > 3:
            return False
        if block_syntax.starts_table(paragraph.lines[-1], line):
            header = paragraph.lines.pop()
            if paragraph.lines:
                self._open("table", len(self.containers), [header, line])
            else:
                paragraph.kind, paragraph.lines = "table", [header, line]
            return True
        found = block_syntax.SETEXT.match(line)
        if found is None:
            return False
        paragraph.kind, paragraph.level = "heading", 1 if found[1][0] == "=" else 2
        self._close_leaf()
        return True

    def _start_leaf(self, cursor: Cursor, depth: int, paragraph: Block | None) -> bool:
        if cursor.indent > 3:
            if paragraph is not None:
                return False
            cursor.skip_columns(4)
            self._open("code", depth, [cursor.rest])
            return True
        line = cursor.stripped
        if heading := block_syntax.heading(line):
            self._open("heading", depth, [heading[1]], level=heading[0])
            self._close_leaf()
        elif fence := block_syntax.fence_start(line):
            self._open("fence", depth, [], fence=fence[0], info=fence[1], indent=cursor.indent)
        elif block_syntax.RULE.match(line):
            self._open("rule", depth, [])
            self._close_leaf()
        elif line[:2] in block_syntax.MATH_ENDS:
            self._open("math", depth, [line], fence=line[:2])
            if line[2:].rstrip().endswith(block_syntax.MATH_ENDS[line[:2]]):
                self._close_leaf()
        else:
            return False
        return True

    def _open(
        self,
        kind: BlockKind,
        depth: int,
        lines: list[str],
        *,
        level: int = 0,
        info: str = "",
        fence: str = "",
        indent: int = 0,
        joined: bool = False,
    ) -> None:
        self.close(depth)
        self.leaf = Block(kind, lines, level=level, info=info, fence=fence, indent=indent, joined=joined)
        self._append(self.leaf)

    def _append(self, block: Block) -> None:
        block.containers = self.containers
        block.fresh = len(self.containers) - self._marked
        block.gap, self._gap = self._gap, False
        self._marked = len(self.containers)
        self.blocks.append(block)

    def _close_leaf(self) -> None:
        leaf, self.leaf = self.leaf, None
        if leaf is None:
            return
        leaf.closed = True
        if leaf.kind == "code":
            while leaf.lines and not leaf.lines[-1].strip():
                leaf.lines.pop()
                self._gap = True
