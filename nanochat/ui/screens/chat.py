"""The main screen: tabs, sidebar, transcript, prompt, side panel and status bar, and what passes between them."""

from __future__ import annotations

import asyncio
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen

from nanochat.ui import edits, links, queue_flow
from nanochat.ui.commands import REGISTRY, editing, replies, settings, tabs
from nanochat.ui.draft import Draft
from nanochat.ui.keymap import first_key, priority_keys
from nanochat.ui.screens.sides import Sides
from nanochat.ui.screens.surroundings import Surroundings
from nanochat.ui.session import ChatSession
from nanochat.ui.widgets.chat_panel import ChatPanel
from nanochat.ui.widgets.completions import slash_completions
from nanochat.ui.widgets.prompt_bar import PromptBar
from nanochat.ui.widgets.prompt_box import PromptBox
from nanochat.ui.widgets.sidebar import Sidebar
from nanochat.ui.widgets.status_bar import StatusBar
from nanochat.ui.widgets.tabs import TabStrip
from nanochat.ui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.widgets.transcript import Transcript


class ChatScreen(Screen[None]):
    """Shows one chat of the open ones. It holds no chat's state: sessions do."""

    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [*REGISTRY.bindings("chat")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (150, "-wide")]  # noqa: RUF012 - as Screen declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-tall")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self._shown: ChatSession | None = None
        self.sides = Sides(self)
        self.surroundings = Surroundings(self)

    def compose(self) -> ComposeResult:
        """Everything, from top to bottom."""
        yield TabStrip(id="tabs")
        with Horizontal(id="middle"):
            yield Sidebar(id="sidebar")
            with Vertical(id="chat"):
                yield Welcome(id="welcome")
                yield PromptBar(
                    self.nanochat.inputs, partial(slash_completions, self.nanochat.registry), id="prompt-bar"
                )
            yield ChatPanel(id="panel")
        yield StatusBar(id="status")

    def on_mount(self) -> None:
        """Sidebar and panel begin hidden."""
        self.sides.hide()
        self.query_one(PromptBar).when_empty = self._answer_empty
        self.prompt.keymap = self.nanochat.keys
        self.prompt.count_tokens = self.nanochat.tokens.of
        self.prompt.send = self.nanochat.send
        self.prompt.leave_keys(priority_keys(self.nanochat.keys, self.nanochat.registry))
        help_key = first_key("help", self.nanochat.registry["help"].keys, self.nanochat.keys)
        self.prompt.placeholder = f"Message · / for commands · {help_key or '/help'} for help"

    def on_resize(self) -> None:
        """Close what has no room any more."""
        self.sides.fit()

    # Parts -------------------------------------------------------------------------------------

    @property
    def nanochat(self) -> NanochatApp:
        """The application, by its own type."""
        return cast("NanochatApp", self.app)

    @property
    def shown(self) -> ChatSession | None:
        """The chat to which the prompt belongs; None before the chats are there."""
        return self._shown

    @property
    def transcript(self) -> Transcript:
        """The chat's text."""
        return cast("Transcript", self.query_one("#transcript"))

    @property
    def prompt(self) -> PromptBox:
        """Where the user writes."""
        return self.query_one(PromptBox)

    async def add_transcript(self) -> None:
        """Put the transcript in its place. Not part of the first frame: importing it takes a while."""
        module = await asyncio.to_thread(import_module, "nanochat.ui.widgets.transcript")
        transcript = cast("Transcript", module.Transcript(id="transcript"))
        transcript.display = False
        await self.query_one("#chat", Vertical).mount(transcript, after="#welcome")

    # Showing -----------------------------------------------------------------------------------

    def keep_draft(self) -> None:
        """Give the shown chat what stands in the prompt."""
        if self._shown is not None:
            for box in self.query(PromptBox):  # none where the application has ended meanwhile
                self._shown.draft = box.draft

    def put_draft(self, session: ChatSession, draft: Draft) -> None:
        """Give a chat another draft; who calls has kept the one before, or knows that it may go."""
        session.draft = draft
        if session not in self.nanochat.chats:
            self.nanochat.remember(draft.full)  # closed meanwhile
        elif session is self._shown:
            self.prompt.load_draft(draft)

    def show_active(self) -> None:
        """Show the active chat: transcript, draft, settings, figures."""
        session = self.nanochat.chats.active
        if session is not self._shown:
            if self._shown is None:  # what was typed before the chats were there
                session.draft = Draft.joined(session.draft, self.prompt.draft)
                session.recall = self.prompt.recall
            self.keep_draft()
            self._shown = session
            self.transcript.swap(session.conversation)
            self.prompt.recall = session.recall
            self.prompt.load_draft(session.draft)
        if session.chat is not None and session.records is None:
            self.nanochat.attempt(session.load())
        self.nanochat.tokens.show_chat()
        self.surroundings.refresh_panel()
        self.surroundings.refresh()
        self.nanochat.desk.sidebar.refresh()
        self.focus_prompt()

    def _answer_empty(self, verb: str) -> bool:
        """What a key of the empty prompt does first: Up takes back what waits, others move among the offers."""
        return (verb == "up" and queue_flow.take_back(self.nanochat)) or self.query_one(Welcome).answer(verb)

    def focus_prompt(self) -> None:
        """Let the user write."""
        self.sides.uncover()
        self.prompt.focus()

    def leave_something(self) -> bool:
        """What Esc leaves before it stops a reply: suggestions, an edit. Returns whether there was one."""
        if self.prompt.completing("close"):
            return True
        return edits.call_off(self.nanochat)

    def action_run(self, action_id: str) -> None:
        """Do one of the registry's actions, from a key."""
        self.nanochat.action_run(action_id)

    # What the widgets say ----------------------------------------------------------------------

    @on(PromptBar.Changed)
    def _changed(self, event: PromptBar.Changed) -> None:
        event.stop()
        if self._shown is not None:
            self.keep_draft()  # not what was told: another tab may be shown by now
            self.nanochat.chats.save_soon()
        self.nanochat.tokens.show(event.draft)

    @on(PromptBox.ScrollRequested)
    def _scroll(self, event: PromptBox.ScrollRequested) -> None:
        event.stop()
        if event.pages == 0:
            self.transcript.follow()
        elif event.pages > 0:
            self.transcript.action_page_down()
        else:
            self.transcript.action_page_up()

    @on(TabStrip.Chosen)
    def _tab(self, event: TabStrip.Chosen) -> None:
        tabs.choose(self.nanochat, event.session, close=event.close)

    @on(TabStrip.NewRequested)
    def _new_tab(self) -> None:
        self.action_run("tab.new")

    @on(StatusBar.Clicked)
    def _figures_clicked(self) -> None:
        self.action_run("numbers")

    @on(Sidebar.Left)
    @on(ChatPanel.Left)
    def _left(self) -> None:
        self.focus_prompt()

    @on(Sidebar.Acted)
    def _sidebar_acted(self, event: Sidebar.Acted) -> None:
        act = self.nanochat.desk.sidebar.act(event.verb, event.chat, event.message)
        self.nanochat.attempt(self.nanochat.key_turns.until_done(act) if event.verb == "open" else act)

    @on(Sidebar.Submitted)
    def _search_submitted(self) -> None:
        self.nanochat.attempt(self.nanochat.desk.sidebar.open_found())

    @on(Sidebar.Searched)
    def _searched(self) -> None:
        self.nanochat.desk.sidebar.refresh()

    @on(ChatPanel.Changed)
    def _settings_changed(self, event: ChatPanel.Changed) -> None:
        self.nanochat.attempt(settings.apply(self.nanochat, event.session, event.settings))

    @on(ChatPanel.ModelRequested)
    def _model_requested(self) -> None:
        self.action_run("chat.model")

    @on(Welcome.Chosen)
    def _offer_chosen(self, event: Welcome.Chosen) -> None:
        self.nanochat.desk.offers.take(event.id)

    # The transcript's messages go by their names: its class is imported after the first frame.

    def on_transcript_left(self, event: Transcript.Left) -> None:
        """The user writes on."""
        self.focus_prompt()
        self.prompt.insert(event.typed)

    def on_transcript_copy_requested(self, event: Transcript.CopyRequested) -> None:
        """Copy."""
        self.nanochat.copy(event.text, f"the {event.what}")

    def on_transcript_action_requested(self, event: Transcript.ActionRequested) -> None:
        """Edit, fork at, regenerate or delete a message."""
        app = self.nanochat
        session = app.chats.of(event.conversation)
        if session is None:
            return
        match event.verb:
            case "edit":
                if session is self._shown:  # else the user left it: there is no prompt to edit it in
                    edits.begin(app, event.message_id)
            case "fork":
                app.attempt(editing.fork_at(app, session, event.message_id))
            case "regenerate":
                app.attempt(replies.regenerate_at(app, session, event.message_id))
            case "delete":
                app.attempt(editing.delete_message(app, session, event.message_id))

    def on_transcript_undo_requested(self) -> None:
        """Undo the last delete."""
        self.nanochat.run_registered("undo")

    def on_transcript_variant_requested(self, event: Transcript.VariantRequested) -> None:
        """Another version of a message."""
        app = self.nanochat
        if (session := app.chats.of(event.conversation)) is not None:
            app.attempt(replies.step_from(app, session, event.message_id, event.step))

    def on_transcript_link_requested(self, event: Transcript.LinkRequested) -> None:
        """A link was clicked."""
        self.nanochat.attempt(links.confirm(self.nanochat, event.url))
