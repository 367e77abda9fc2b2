"""What the keys do, in a line or two under a list: a key and its word are never on two lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

_BETWEEN = " · "


class Hints(Static):
    """Shows hints, the most important first."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._hints: tuple[str, ...] = ()

    def show(self, hints: Sequence[str]) -> None:
        """Show these."""
        self._hints = tuple(hints)
        self._lay_out()

    def on_resize(self) -> None:
        """Break the lines elsewhere."""
        self._lay_out()

    def _lay_out(self) -> None:
        self.update(Content("\n".join(lines_of(self._hints, self.size.width))))


def lines_of(hints: Sequence[str], width: int) -> list[str]:
    """As many hints a line as fit into `width` cells, one at least."""
    lines: list[str] = []
    for hint in hints:
        longer = _BETWEEN.join((*lines[-1:], hint))
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(hint)
    return lines
