"""The command palette: Textual's, where a page key that comes before the commands are laid out does nothing."""

from __future__ import annotations

from contextlib import suppress

from textual.command import CommandPalette

from nanochat.ui.screens.leaving import LeftOnce

OPEN = "--textual-command-palette"
"""The class of an open one."""


class Palette(LeftOnce, CommandPalette):
    """See `PagedList`: the palette's own list has the same fault."""

    def _action_command_list(self, action: str) -> None:
        with suppress(LookupError):
            super()._action_command_list(action)
