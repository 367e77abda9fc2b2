"""The sidebar: all chats by day, and the search through every message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import ClassVar, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content, Span
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from nanochat.sanitize import sanitize_line
from nanochat.storage.chats import Day
from nanochat.storage.records import Chat, Found, Snippet
from nanochat.ui.widgets.paged_list import PagedList

_KEYS = "/ search · r rename · p pin\nd delete · u undo · x export"
Verb = Literal["open", "rename", "pin", "delete", "undo", "export"]


class ChatList(PagedList):
    """The chats; letters act on the highlighted one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "act('rename')", "Rename", id="sidebar.rename", tooltip="Give the chat another title."),
        Binding("p", "act('pin')", "Pin", id="sidebar.pin", tooltip="Keep the chat at the top, or let it go."),
        Binding(
            "d,delete", "act('delete')", "Delete", id="sidebar.delete", tooltip="Delete the chat; u brings it back."
        ),
        Binding("u", "act('undo')", "Undo", id="sidebar.undo", tooltip="Undo the last delete."),
        Binding("x", "act('export')", "Export", id="sidebar.export", tooltip="Write the chat to a file."),
        Binding("slash", "search", "Search", id="sidebar.search", tooltip="Search all chats."),
        Binding("j", "cursor_down", "Down", id="sidebar.down", show=False),
        Binding("k", "cursor_up", "Up", id="sidebar.up", show=False),
    ]  # fmt: skip

    def action_act(self, verb: Verb) -> None:
        """Ask for this to be done to the highlighted chat."""
        option = None if self.highlighted is None else self.get_option_at_index(self.highlighted)
        chat = (option.id or "").partition(" ")[0] if option is not None else ""
        self.post_message(Sidebar.Acted(verb, chat))

    def action_search(self) -> None:
        """Go to the search line."""
        self.screen.query_one("#sidebar-search", Input).focus()


class Sidebar(Vertical):
    """Search line and chats. What it shows is given to it; what the user wants it posts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", id="sidebar.leave", tooltip="Back to the prompt."),
        Binding("down", "to_list", "List", id="sidebar.to_list", show=False),
    ]

    @dataclass
    class Acted(Message):
        """The user wants something done to a chat; `message` is the one that a search found."""

        verb: Verb
        chat: str
        message: str = ""

    @dataclass
    class Searched(Message):
        """The search line changed; an empty query wants the whole list."""

        query: str

    @dataclass
    class Submitted(Message):
        """Enter in the search line: the user wants the best of what is found."""

    @dataclass
    class Left(Message):
        """The user is done here."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._query = ""
        self._active: str | None = None
        self._matches: dict[str, str] = {}  # the message that a search found in a chat, the best of them
        self._begins = True
        self._stays = False  # the cursor, in the next list, whatever chat is open then
        self._filling = asyncio.Lock()  # who opens it twice at once waits for the first

    def begin(self) -> None:
        """It is opened: the cursor begins at the open chat."""
        self._begins = True

    def pass_over(self, chat: str) -> None:
        """A chat goes away: the cursor goes on to the next row, from the last to the one before, and stays there."""
        self._stays = True
        chats = self.query_one(ChatList)
        rows = [(option.id or "").partition(" ")[0] for option in chats.options]
        at = chats.highlighted
        if at is not None and rows[at] == chat:
            others = [place for place, row in enumerate(rows) if row not in ("", chat)]
            chats.highlighted = next((place for place in others if place > at), max(others, default=at))

    async def fill(self) -> None:
        """Make search line and list, when they are wanted first: the first frame does not pay for them."""
        async with self._filling:
            if not self.children:
                search = Input(placeholder="Search all chats", id="sidebar-search", select_on_focus=False)
                await self.mount(search, ChatList(id="sidebar-list"), Static(_KEYS, id="sidebar-keys"))

    def show_days(self, days: Iterable[Day], *, active: str | None, today: date) -> None:
        """Show all chats under their days."""
        options: list[Option] = []
        for day in days:
            options.append(_heading(_day_name(day.date, today)))
            options.extend(Option(_chat_line(chat, chat.id == active), id=chat.id) for chat in day.chats)
        if not options:
            options.append(_heading("No chats yet: what you send appears here."))
        anew = self._begins or bool(self._query) or active != self._active
        self._replace(options, keep=self._stays or not anew, begin=active)
        self._query, self._active, self._begins, self._stays = "", active, False, False
        self._matches = {}

    def show_found(self, found: Sequence[Found], query: str) -> None:
        """Show what a search found: each chat with its matching messages."""
        options: list[Option] = []
        for entry in found:
            options.append(Option(Content.assemble(_marked(entry.title, "bold")), id=entry.chat.id))
            options.extend(
                Option(Content("  ") + _marked(hit.snippet, "dim"), id=f"{entry.chat.id} {hit.message}")
                for hit in entry.hits
            )
        if not options:
            options.append(_heading(f"Nothing found for “{sanitize_line(query)}”"))
        self._replace(options, keep=query == self._query)
        self._query, self._stays = query, False
        self._matches = {entry.chat.id: entry.hits[0].message for entry in found if entry.hits}

    @property
    def query_text(self) -> str:
        """What stands in the search line."""
        return self.query_one(Input).value.strip()

    def search_for(self, query: str) -> None:
        """Put a query into the search line and go there."""
        line = self.query_one(Input)
        line.value = query
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search as the user types."""
        event.stop()
        self.post_message(self.Searched(event.value.strip()))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Open the best of what is found; without a query, go to the list."""
        event.stop()
        if event.value.strip():
            self.post_message(self.Submitted())
        else:
            self.action_to_list()

    def open_highlighted(self) -> None:
        """Open the highlighted chat, at the message that was found in it."""
        self.query_one(ChatList).action_select()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the chosen chat, where something was found in it at the message."""
        event.stop()
        chat, _, message = (event.option_id or "").partition(" ")
        if chat:
            self.post_message(self.Acted("open", chat, message or self._matches.get(chat, "")))

    def action_leave(self) -> None:
        """Back to the prompt; a query is cleared first."""
        line = self.query_one(Input)
        if line.value:
            line.value = ""
        else:
            self.post_message(self.Left())

    def action_to_list(self) -> None:
        """Go to the list."""
        self.query_one(ChatList).focus()

    def on_key(self, event: events.Key) -> None:
        """Up from the first chat goes to the search line."""
        chats = self.query_one(ChatList)
        first = next((place for place, option in enumerate(chats.options) if not option.disabled), 0)
        if event.key == "up" and chats.has_focus and chats.highlighted in (None, first):
            event.stop()
            event.prevent_default()
            self.query_one(Input).focus()

    def _replace(self, options: list[Option], *, keep: bool, begin: str | None = None) -> None:
        """Show these. The cursor stays where it was, with the next one where that one is gone, or begins there."""
        chats = self.query_one(ChatList)
        at = chats.highlighted if keep else None
        kept = begin if at is None else chats.get_option_at_index(at).id
        chats.set_options(options)
        places = {option.id: place for place, option in enumerate(options) if option.id}
        following = (place for place in places.values() if place >= (at or 0))
        chats.highlighted = places.get(kept or "", next(following, max(places.values(), default=None)))


def _heading(text: str) -> Option:
    return Option(Content(text), disabled=True)


def _chat_line(chat: Chat, active: bool) -> Content:
    pin = "★ " if chat.pinned else "" if not active else "› "
    return Content.assemble(
        (pin, "bold"), (sanitize_line(chat.title) or "New chat", "bold" if active else "")
    )


def _marked(snippet: Snippet, style: str) -> Content:
    """A snippet with its matches marked. Cleaned character for character, so that the spans still fit."""
    clean = "".join(sanitize_line(char) or " " for char in snippet.text)
    spans = [Span(start, end, "bold $accent not dim") for start, end in snippet.spans]
    return Content(clean, spans=[Span(0, len(clean), style), *spans])


def _day_name(day: date | None, today: date) -> str:
    if day is None:
        return "Pinned"
    if day == today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    if day > today - timedelta(days=7):
        return f"{day:%A}"
    return f"{day.day} {day:%B}" if day.year == today.year else f"{day.day} {day:%B %Y}"
