"""The screen of models: those on this machine, those that are recommended, and the hub's; and their downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from nanochat.errors import Offline
from nanochat.sanitize import sanitize_line
from nanochat.ui.model_rows import Row
from nanochat.ui.models_flow import ModelsFlow
from nanochat.ui.screens.leaving import LeftOnce
from nanochat.ui.screens.page import Page
from nanochat.ui.widgets.facts import Facts
from nanochat.ui.widgets.hints import Hints
from nanochat.ui.widgets.model_list import ModelList

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp

_HINTS: dict[str, tuple[str, ...]] = {
    "here": ("Enter load", "u default", "v verify", "x remove", "e unload", "t idle time"),
    "listing": ("Enter download",),
    "download": ("p pause, resume", "x cancel"),
    "leftovers": ("Enter clean",),
}
_ALWAYS = ("i details", "/ search", "o folder", "Esc back")


class ModelsScreen(LeftOnce, Screen[None]):
    """Shows what the flow knows; holds nothing itself."""

    AUTO_FOCUS = "#models-list"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3,q", "back", "Back", id="models.back", tooltip="Back to the chat."),
        Binding("slash", "search", "Search", id="models.search", tooltip="Search the hub."),
        Binding("i", "details", "Details", id="models.details", tooltip="Everything about the model, with the arithmetic of its fit."),
        Binding("p", "pause", "Pause", id="models.pause", tooltip="Pause a download, or go on with it."),
        Binding("x,delete", "remove", "Remove", id="models.remove", tooltip="Cancel a download, or remove a model."),
        Binding("u", "default", "Default", id="models.default", tooltip="Make the model the default of new chats."),
        Binding("v", "verify", "Verify", id="models.verify", tooltip="Hash every file and compare with the hub's list."),
        Binding("e", "unload", "Unload", id="models.unload", tooltip="Give the loaded model's memory back."),
        Binding("t", "idle", "Idle time", id="models.idle", tooltip="When an idle model is unloaded."),
        Binding("o", "folder", "Folder", id="models.folder", tooltip="Use a model in any folder."),
        Binding("c", "clean", "Clean", id="models.clean", tooltip="Remove what unfinished downloads left."),
        Binding("r", "refresh", "Look again", id="models.refresh", tooltip="Look at this machine again."),
    ]  # fmt: skip
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (160, "-wide")]  # noqa: RUF012 - as Screen declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-tall")]  # noqa: RUF012

    def __init__(self, flow: ModelsFlow) -> None:
        super().__init__()
        self._flow = flow
        self._pending = False

    def compose(self) -> ComposeResult:
        """Head, search line, list and details, hints."""
        yield Static("", id="models-head")
        yield Input(placeholder="/ search the hub by name", id="models-search", select_on_focus=False)
        with Horizontal(id="models-middle"):
            with Vertical(id="models-left"):
                yield ModelList(id="models-list")
            with VerticalScroll(id="models-details", can_focus=False):
                yield Facts(id="models-details-text")
        yield Hints(id="models-hints")

    def on_mount(self) -> None:
        """Show what is known, and look again."""
        self._flow.on_change = self._flow_changed
        self.query_one(Input).value = sanitize_line(self._flow.query)
        self.call_after_refresh(self.redraw)
        self._attempt(self._flow.refresh())

    def on_unmount(self) -> None:
        """What changes from here on, nobody sees."""
        self._flow.on_change = lambda: None

    @property
    def nanochat(self) -> NanochatApp:
        """The application, by its own type."""
        return cast("NanochatApp", self.app)

    @property
    def models(self) -> ModelList:
        """The list."""
        return self.query_one(ModelList)

    def redraw(self, go_to: str = "") -> None:
        """Show everything as it is now."""
        self._pending = False
        if not self.is_mounted or self.left:
            return
        head = self._flow.head()
        left = Content.assemble(
            ("Models", "bold $primary"), ("  " + sanitize_line(head[0]), "$foreground 70%")
        )
        self.query_one("#models-head", Static).update(
            Content("\n").join([left, Content(sanitize_line(head[1]))])
        )
        self.models.show(self._flow.rows(), go_to=go_to)
        self._show_row(self.models.row)

    # What the user does ------------------------------------------------------------------------

    def action_back(self) -> None:
        """Leave the search line, else the screen."""
        if self.query_one(Input).has_focus:
            self.models.focus()
        else:
            self.dismiss()

    def action_search(self) -> None:
        """Write what to search for."""
        self.query_one(Input).focus()

    def action_details(self) -> None:
        """Everything about the highlighted model; the hub is asked about one that is not here."""
        row = self.models.row
        if row is not None:
            self._attempt(self._details(row))

    def action_pause(self) -> None:
        """Pause a download, or go on."""
        if (row := self.models.row) is not None:
            self._attempt(self._flow.acts.pause_or_resume(row))

    def action_remove(self) -> None:
        """Cancel or remove."""
        if (row := self.models.row) is not None:
            self._attempt(self._flow.acts.remove(row))

    def action_default(self) -> None:
        """Make it the default."""
        if (row := self.models.row) is not None:
            self._attempt(self._flow.acts.make_default(row))

    def action_verify(self) -> None:
        """Check every byte."""
        if (row := self.models.row) is not None:
            self._attempt(self._flow.acts.verify(row))

    def action_unload(self) -> None:
        """Unload the model."""
        self.nanochat.run_registered("model.unload")

    def action_idle(self) -> None:
        """Choose after how long an idle model is unloaded."""
        self.nanochat.run_registered("model.idle")

    def action_folder(self) -> None:
        """Use a model by its folder."""
        self._attempt(self._folder())

    def action_clean(self) -> None:
        """Remove leftovers."""
        self._attempt(self._flow.acts.clean())

    def action_refresh(self) -> None:
        """Look again."""
        self._attempt(self._flow.refresh())

    @on(ModelList.Taken)
    def _taken(self, event: ModelList.Taken) -> None:
        event.stop()
        self._attempt(self._take(event.row))

    @on(ModelList.Moved)
    def _moved(self, event: ModelList.Moved) -> None:
        event.stop()
        self._show_row(event.row)

    @on(Input.Submitted)
    def _search(self, event: Input.Submitted) -> None:
        event.stop()
        self.models.focus()
        self._attempt(self._search_for(event.value))

    def on_key(self, event: events.Key) -> None:
        """Down from the search line goes to the list."""
        if event.key == "down" and self.query_one(Input).has_focus:
            event.stop()
            self.models.focus()

    # Inside ------------------------------------------------------------------------------------

    def _attempt(self, work: Awaitable[object]) -> None:
        self.nanochat.attempt(work)

    def _flow_changed(self) -> None:
        """Many changes are one drawing."""
        if not self._pending:
            self._pending = True
            self.call_later(self.redraw)

    async def _take(self, row: Row) -> None:
        if await self._flow.acts.take(row):
            self.dismiss()
        elif row.kind == "listing" and (one := self._flow.downloads.find(row.name)) is not None:
            self.redraw(go_to=f"download:{one.id}")

    async def _folder(self) -> None:
        if await self._flow.acts.use_folder():
            self.dismiss()

    async def _search_for(self, text: str) -> None:
        searching = asyncio.ensure_future(self._flow.search(text))
        self.call_after_refresh(self.models.scroll_end, animate=False)  # there stands what is being done
        await searching
        first = next((row.key for row in self._flow.rows() if row.key.startswith("hub:")), "")
        if not self.left:
            self.redraw(go_to=first)
            group = next(
                (row.key for row in self._flow.rows() if row.key.startswith("heading:On the hub")), ""
            )
            self.call_after_refresh(self.models.lead_with, group)

    async def _details(self, row: Row) -> None:
        try:
            lines = await self._flow.look_up(row)
        except Offline as error:
            if self.query_one("#models-details").display:
                raise
            lines = [*self._flow.details(row), "", f"{error}"]  # what is known without the hub
        if not self.is_current or self.query_one("#models-details").display:
            return
        self.app.push_screen(Page(row.name, Facts(lines)))

    def _show_row(self, row: Row | None) -> None:
        details = self._flow.details(row) if row is not None else []
        self.query_one(Facts).show(details)
        hints = _HINTS.get(row.kind, ()) if row is not None else ()
        self.query_one(Hints).show((*hints, *_ALWAYS))
