"""A block of Markdown as it is drawn: a heading, a paragraph, a fence, and the quotes and list items around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BlockKind = Literal["paragraph", "heading", "fence", "code", "math", "table", "rule"]

#: Kinds whose lines stand as they came; the others are drawn anew when a line is added.
GROWING: frozenset[BlockKind] = frozenset(("fence", "code", "math", "table"))


@dataclass(frozen=True, slots=True)
class Container:
    """A quote or a list item around a block. `list_id` is shared by a list's items; `number` counts ordered ones."""

    kind: Literal["quote", "item"]
    indent: int = 0
    marker: str = ""
    number: int = 0
    list_id: int = 0


@dataclass(slots=True)
class Block:
    """A leaf block. While open, lines are added (and a paragraph may turn out to be a heading or a table).

    `containers` stand around it, outermost first; the last `fresh` of them begin with this block. `gap`:
    blank lines stood before it. `joined`: it continues the paragraph before it, which grew too long.
    `continued` are the indices of lines that continue the line before them.
    """

    kind: BlockKind
    lines: list[str]
    containers: tuple[Container, ...] = ()
    fresh: int = 0
    gap: bool = False
    level: int = 0
    info: str = ""
    fence: str = ""
    indent: int = 0
    closed: bool = False
    joined: bool = False
    continued: set[int] = field(default_factory=set[int])

    @property
    def text(self) -> str:
        """The content: code byte for byte, without a line end after the last line."""
        if not self.continued:
            return "\n".join(self.lines)
        parts = [line if index in self.continued else "\n" + line for index, line in enumerate(self.lines)]
        return "".join(parts)[1:]

    @property
    def language(self) -> str:
        """The first word of a fence's info string; `text` when there is none."""
        words = self.info.replace(",", " ").replace("{", " ").split()
        return words[0].lower() if words else "text"
