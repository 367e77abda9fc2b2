"""The command palette: Textual's, which takes keys that come before or after what they are meant for."""

from __future__ import annotations

from contextlib import suppress

from textual import on
from textual.command import CommandPalette
from textual.widgets import Button, Input, OptionList

from nanochat.ui.screens.leaving import LeftOnce

OPEN = "--textual-command-palette"
"""The class of an open one."""


class Palette(LeftOnce, CommandPalette):
    """Runs one command. A page key before the commands are laid out does nothing: see `PagedList`."""

    @on(Input.Submitted)
    @on(Button.Pressed)
    @on(OptionList.OptionSelected)
    def _choose_once(self, event: Input.Submitted | Button.Pressed | OptionList.OptionSelected) -> None:
        """A second Enter may wait in the queue when the first has closed it; Textual would run the command again."""
        if not self.is_current:
            event.stop()
            event.prevent_default()

    def _action_command_list(self, action: str) -> None:
        with suppress(LookupError):
            super()._action_command_list(action)
