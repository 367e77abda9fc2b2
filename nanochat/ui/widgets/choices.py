"""A list to choose from in which a click chooses and does no more; Enter, or a button, does it."""

from __future__ import annotations

from typing import Any

from textual import events

from nanochat.ui.widgets.paged_list import PagedList


class Choices(PagedList):
    """An option list whose options the mouse highlights only."""

    def on_click(self, event: events.Click) -> None:
        """Highlight."""
        event.prevent_default()
        meta: dict[str, Any] = event.style.meta
        place = meta.get("option")
        if isinstance(place, int):
            self.highlighted = place
