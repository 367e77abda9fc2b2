"""The strip of tabs: one chat each, with a sign for its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from nanochat.sanitize import sanitize_line
from nanochat.ui.services import TabState

if TYPE_CHECKING:
    from nanochat.ui.session import ChatSession

SIGNS: dict[TabState, str] = {
    TabState.IDLE: " ",
    TabState.QUEUED: "◌",
    TabState.WAITING: "◌",
    TabState.PREFILLING: "▴",
    TabState.STREAMING: "●",
    TabState.UNSEEN: "◆",
    TabState.FAILED: "✗",
}
"""What stands before a title, so that no state is told by colour alone."""

_STYLES: dict[TabState, str] = {
    TabState.QUEUED: "$warning",
    TabState.WAITING: "$warning",
    TabState.PREFILLING: "$accent",
    TabState.STREAMING: "$success",
    TabState.UNSEEN: "$primary",
    TabState.FAILED: "$error",
}
_TITLE_CELLS = 24


@dataclass(frozen=True, slots=True)
class TabLabel:
    """One tab as the strip shows it, and whose it is."""

    title: str
    state: TabState
    session: ChatSession


class TabStrip(Widget):
    """One row with every tab; the active one is always in view. A click means the tab that was seen there."""

    @dataclass
    class Chosen(Message):
        """The user clicked a tab; with `close`, with the middle button."""

        session: ChatSession
        close: bool = False

    @dataclass
    class NewRequested(Message):
        """The user clicked the sign for a new tab."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._labels: tuple[TabLabel, ...] = ()
        self._active = 0
        # whose, start and end in cells; None is the new-tab sign
        self._spans: list[tuple[ChatSession | None, int, int]] = []

    def show(self, labels: Sequence[TabLabel], active: int) -> None:
        """Show these tabs; draws only when something changed."""
        fresh = tuple(labels)
        if (fresh, active) != (self._labels, self._active):
            self._labels, self._active = fresh, active
            self.refresh()

    def render(self) -> Content:
        """The row."""
        pieces = [self._piece(index, label) for index, label in enumerate(self._labels)]
        first, last = self._window([cell_len(text) for text, _ in pieces])
        parts: list[tuple[str, str]] = []
        self._spans, at = [], 0

        def put(text: str, style: str, index: int | None = None) -> None:
            nonlocal at
            parts.append((text, style))
            width = cell_len(text)
            if index is not None:
                self._spans.append((None if index < 0 else self._labels[index].session, at, at + width))
            at += width

        if first > 0:
            put("‹", "dim", first - 1)
        for index in range(first, last):
            text, style = pieces[index]
            active = index == self._active
            plain = self.app.no_color
            here = ("bold reverse" if plain else "bold $primary on $background") if active else ""
            put(text[:2], here or "$foreground 55%", index)
            put(text[2:3], here if plain else f"{style} {here and 'on $background'}".strip(), index)
            put(text[3:], here, index)
        put("›" if last < len(pieces) else " ", "dim", last if last < len(pieces) else None)
        put(" + ", "dim", -1)
        return Content.assemble(*parts)

    def on_click(self, event: events.Click) -> None:
        """Choose the tab under the pointer."""
        for session, start, end in self._spans:
            if start <= event.x < end:
                self.post_message(
                    self.NewRequested() if session is None else self.Chosen(session, close=event.button == 2)
                )
                return

    def _piece(self, index: int, label: TabLabel) -> tuple[str, str]:
        number = f" {index + 1}" if index < 9 else "  "
        title = sanitize_line(label.title) or "New chat"
        if cell_len(title) > _TITLE_CELLS:
            title = set_cell_size(title, _TITLE_CELLS - 1).rstrip() + "…"
        return f"{number}{SIGNS[label.state]} {title} ", _STYLES.get(label.state, "")

    def _window(self, widths: list[int]) -> tuple[int, int]:
        """The range of tabs that fits, with the active one in it."""
        room = self.size.width - 5
        first = last = min(self._active, max(len(widths) - 1, 0))
        used = 0
        while last < len(widths) and used + widths[last] <= room:
            used += widths[last]
            last += 1
        last = max(last, min(first + 1, len(widths)))
        while first > 0 and used + widths[first - 1] <= room:
            first -= 1
            used += widths[first]
        return first, last
