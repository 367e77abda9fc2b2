"""What waits to be sent, in a few quiet lines above the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from nanochat.sanitize import sanitize_line
from nanochat.ui.draft import Draft

_LINES = 3
_CHARACTERS = 500  # of a message; more than the widest line has


class QueuedMessages(Static):
    """A line each, the next one first, at most three in all; on a low screen only that one. Hidden while nothing waits."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.display = False
        self._shown: tuple[str, ...] = ()

    def show(self, drafts: Sequence[Draft]) -> None:
        """Show these."""
        lines = _lines(drafts)
        if lines != self._shown:
            self._shown = lines
            self.display = bool(lines)
            self.update(Content("\n".join(lines)))


def _lines(drafts: Sequence[Draft]) -> tuple[str, ...]:
    """As lines; where there are more, the last one says how many."""
    fits = len(drafts) if len(drafts) <= _LINES else _LINES - 1
    lines = [f"{place}. {_begin(draft)}" for place, draft in enumerate(drafts[:fits], 1)]
    return (*lines, f"and {len(drafts) - fits:,} more") if fits < len(drafts) else tuple(lines)


def _begin(draft: Draft) -> str:
    return sanitize_line(draft.text.strip()[:_CHARACTERS])
