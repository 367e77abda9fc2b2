"""What opens beside the chat: the list of chats on its left, its settings on its right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.ui.widgets.chat_panel import ChatPanel
from nanochat.ui.widgets.sidebar import Sidebar

if TYPE_CHECKING:
    from nanochat.ui.screens.chat import ChatScreen

COVERS_BELOW = 100  # columns: on a narrower screen a side covers the chat
ONE_BELOW = 150  # columns: on a narrower screen there is room for one side


class Sides:
    """Shows and hides the sides of the chat screen. A side that covers the chat closes when the user goes there."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    @property
    def list(self) -> Sidebar:
        """The list of chats."""
        return self._screen.query_one(Sidebar)

    @property
    def panel(self) -> ChatPanel:
        """The chat's settings."""
        return self._screen.query_one(ChatPanel)

    def hide(self) -> None:
        """Show the chat alone."""
        self.list.display = self.panel.display = False
        self._cover()

    def _cover(self) -> None:
        """Take the chat off a screen on which a side needs all the room, and bring it back."""
        covered = self._screen.size.width < COVERS_BELOW and (self.list.display or self.panel.display)
        self._screen.query_one("#chat").display = not covered

    async def toggle_list(self) -> None:
        """Show the list of chats and go there; hide it when the user is in it."""
        if self.list.display and self.list.has_focus_within:
            self.list.display = False
            self._cover()
            self._screen.focus_prompt()
        else:
            await self.open_list()
            self.list.action_to_list()

    async def search(self, query: str) -> None:
        """Show the list of chats and search."""
        await self.open_list()
        self.list.search_for(query)

    async def open_list(self) -> None:
        """Show the list of chats."""
        if self._screen.size.width < ONE_BELOW:
            self.panel.display = False
        await self.list.fill()
        if not self.list.display:
            self.list.begin()
        self.list.display = True
        self._cover()
        self._screen.nanochat.desk.sidebar.refresh()

    async def toggle_panel(self, *, shown: bool = False) -> None:
        """Show the settings and go there; hide them when the user is in them, unless they are to be `shown`."""
        if self.panel.display and self.panel.has_focus_within and not shown:
            self.panel.display = False
            self._cover()
            self._screen.focus_prompt()
            return
        if self._screen.size.width < ONE_BELOW:
            self.list.display = False
        await self.panel.fill()
        self.panel.display = True
        self._cover()
        self._screen.surroundings.refresh_panel()
        self.panel.query("Button").first().focus()

    def uncover(self) -> None:
        """The user goes to the chat: what covers it closes."""
        if self._screen.size.width < COVERS_BELOW:
            self.hide()

    def fit(self) -> None:
        """The screen has another width: what has no room any more closes; the side that the user is in stays."""
        width = self._screen.size.width
        inside = self.list.has_focus_within or self.panel.has_focus_within
        if width < COVERS_BELOW and not inside:
            self.hide()
        elif width < ONE_BELOW and self.list.display and self.panel.display:
            (self.list if self.panel.has_focus_within else self.panel).display = False
        self._cover()
