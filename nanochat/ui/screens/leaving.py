"""Screens that are left once, however often that is asked."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from textual.await_complete import AwaitComplete
from textual.screen import Screen


class LeftOnce:
    """Stands before Textual's screen among the bases.

    A second Esc, or a click behind it, may wait in the screen's queue when it is left; Textual would close the screen
    below for it, and ends the application where there is none.
    """

    @property
    def left(self) -> bool:
        """Whether it was closed: what was begun on it, and comes back to it, has nothing to show any more."""
        screen = cast("Screen[Any]", self)
        return screen not in screen.app.screen_stack

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Close the screen with a result; nothing when it is not, or no longer, the one on top."""
        screen = cast("Screen[Any]", self)
        if not screen.is_current:
            return AwaitComplete.nothing()
        try:
            return Screen.dismiss(screen, result)
        except asyncio.InvalidStateError:  # nobody waits for the answer any more
            return screen.app.pop_screen()
