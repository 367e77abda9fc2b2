"""The application: one engine, one history, the open chats, and the screens over them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import events
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.screen import ModalScreen, Screen

from nanochat.errors import NanochatError
from nanochat.sanitize import sanitize
from nanochat.settings import Paths, Settings
from nanochat.ui import sending, theme
from nanochat.ui.actions import Registry
from nanochat.ui.ascii_filter import AsciiFilter
from nanochat.ui.benchmark import Benchmark
from nanochat.ui.clipboard import Clipboard
from nanochat.ui.commands import REGISTRY
from nanochat.ui.desk import Desk
from nanochat.ui.draft import Draft
from nanochat.ui.engine_port import Engine
from nanochat.ui.errands import Errands
from nanochat.ui.idle_work import IdleWork
from nanochat.ui.input_history import InputHistory
from nanochat.ui.interrupts import Interrupts
from nanochat.ui.key_turns import KeyTurns
from nanochat.ui.keymap import as_textual
from nanochat.ui.lifetime import Lifetime
from nanochat.ui.model_host import ModelHost
from nanochat.ui.monitor import Reading
from nanochat.ui.notices import Notices, Severity
from nanochat.ui.open_chats import OpenChats
from nanochat.ui.screens.chat import ChatScreen
from nanochat.ui.screens.palette import OPEN, Palette
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import Shelf
from nanochat.ui.token_count import TokenCount
from nanochat.ui.undo import UndoStack
from nanochat.ui.widgets.prompt_box import PromptBox

if TYPE_CHECKING:
    from nanochat.history import History


class NanochatApp(App[None], inherit_bindings=False):
    """Holds what the screens share. What a chat is, sessions know; what is drawn, widgets know.

    `engine`, `shelf` and `read` are the edges: tests put their own there.
    """

    TITLE = "nanochat"
    CSS_PATH = [  # noqa: RUF012 - declared so by App
        "app.tcss",
        "screens/chat.tcss",
        "screens/bench.tcss",
        "screens/dialogs.tcss",
        "widgets/prompt_bar.tcss",
        "widgets/sidebar.tcss",
        "widgets/chat_panel.tcss",
        "widgets/welcome.tcss",
        "screens/models.tcss",
    ]
    BINDINGS: ClassVar[list[BindingType]] = [*REGISTRY.bindings("app")]
    ENABLE_COMMAND_PALETTE = True
    PAUSE_GC_ON_SCROLL = True
    SUSPENDED_SCREEN_CLASS = "-below"

    def __init__(self, desk: Desk) -> None:
        super().__init__(driver_class=desk.driver)
        self.desk = desk
        self.registry: Registry = REGISTRY
        self.paths: Paths = desk.paths
        self.settings: Settings = desk.settings
        self.keys = as_textual(desk.settings.keymap, REGISTRY)
        self.folder = Path.cwd()
        self.inputs = InputHistory(desk.paths.data / "prompt-history.jsonl")
        self.reading = Reading()
        self.note = ""
        self.lifetime = Lifetime(self)
        self.benchmark = Benchmark(self)
        self.undo = UndoStack()
        self.tokens = TokenCount(self)
        self.key_turns = KeyTurns(self, self._give)
        self._interrupts, self._notices = Interrupts(self), Notices(self, self._unnotify)
        self._errands = Errands(self, self._handle_exception)
        for each in theme.THEMES:
            self.register_theme(each)
        self.unknown_theme = not theme.use_theme(self, self.settings.theme)
        if desk.ascii_only:
            self._filters.append(AsciiFilter())

    # Parts -------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine's service."""
        return self.desk.engine

    @property
    def shelf(self) -> Shelf:
        """The models on this machine."""
        return self.desk.shelf

    @property
    def history(self) -> History:
        """The chats on disk."""
        return self.desk.history

    @property
    def host(self) -> ModelHost:
        """The model in the engine."""
        return self.desk.host

    @property
    def chats(self) -> OpenChats:
        """The open tabs."""
        return self.desk.chats

    @property
    def shown(self) -> ChatSession:
        """The chat that the user sees, and means."""
        return self.chat_screen.shown or self.chats.active

    @property
    def idle(self) -> IdleWork:
        """What the engine does when nobody waits."""
        return self.desk.idle

    @property
    def chat_screen(self) -> ChatScreen:
        """The main screen, also while another is over it."""
        return cast(ChatScreen, self.screen_stack[0])

    # Beginning and end -------------------------------------------------------------------------

    def get_default_screen(self) -> Screen[Any]:
        """The chat."""
        return ChatScreen()

    def on_mount(self) -> None:
        """Look as the user wants, and begin as soon as the first frame is drawn."""
        self.set_keymap(self.keys)
        self.call_after_refresh(self.attempt, self.lifetime.begin())

    @property
    def fault(self) -> Exception | None:
        """What went wrong in our own code, when that ended the application."""
        return self._exception

    async def action_quit(self) -> None:
        """Save everything and end."""
        await self.lifetime.end()

    def _fatal_error(self) -> None:
        """A fault of our own: `main` raises it once the terminal is as it was; nothing is dumped on the screen."""
        self._close_messages_no_wait()

    # Doing -------------------------------------------------------------------------------------

    def attempt(self, work: Awaitable[object]) -> None:
        """Run this beside everything else; an error of ours becomes a word to the user."""
        self.run_worker(self._errands.attempt(work), exit_on_error=True)

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run this in the background; nobody waits for it. The end of the application cancels it."""
        return self._errands.spawn(work)

    def cancel_spawned(self) -> None:
        """End what runs in the background."""
        self._errands.cancel()

    def run_registered(self, action_id: str, argument: str = "") -> None:
        """Do one of the registry's actions."""
        if self.desk.is_open or action_id in ("quit", "interrupt", "help", "log"):
            try:
                result = self.registry[action_id].run(self, argument)
            except NanochatError as error:
                self.say(str(error), severity="warning")
                return
            if result is not None:
                self.attempt(result)

    def action_run(self, action_id: str) -> None:
        """Do one of the registry's actions, from a key.

        In its turn: what was typed before the key waits in the focused widget's queue, and the action waits behind it.
        """
        (self.focused or self.screen).call_later(self.run_registered, action_id)

    def send(self, draft: Draft) -> None:
        """Send what the prompt held, as soon as the chats are there."""
        self.attempt(sending.send(self, draft))

    def remember(self, text: str) -> None:
        """Keep what was written and not sent: Up brings it back."""
        self.inputs.add(text, sent=False)
        self.spawn(asyncio.to_thread(self.inputs.save))

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._interrupts.press()

    # Saying and asking -------------------------------------------------------------------------

    def say(self, text: str, *, severity: Severity = "information") -> None:
        """A word to the user, for some seconds; once, where two parts of the application meet the same error."""
        self._notices.say(text, severity)

    async def ask(self, question: ModalScreen[str | None]) -> str | None:
        """Ask, and wait for the answer. Who is cancelled meanwhile takes the question back."""
        try:
            return await self.push_screen_wait(question)
        except asyncio.CancelledError:
            if question.is_current:
                self.pop_screen()
            raise

    def copy(self, text: str, what: str) -> None:
        """Put text on the clipboard, and say which way."""
        self.attempt(self._copy(text, what))

    async def _copy(self, text: str, what: str) -> None:
        clipboard = Clipboard(self._write_to_terminal, os.environ)
        self.say((await clipboard.copy(text)).describe(what))

    def _write_to_terminal(self, sequence: str) -> None:
        if self._driver is not None:
            self._driver.write(sequence)

    def copy_to_clipboard(self, text: str) -> None:
        """What Textual's own fields copy goes the same way."""
        self.copy(text, "the text")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette: the registry."""
        for action in self.registry:
            if action.listed:
                yield SystemCommand(
                    action.title, action.help, lambda name=action.id: self.run_registered(name)
                )

    def action_command_palette(self) -> None:
        """Show it."""
        if not self.screen.has_class(OPEN):
            self.push_screen(Palette())

    async def chats_changed(self, chat_id: str) -> None:
        """A chat has another title, pin or place: show it so."""
        for session in self.chats:
            if session.chat is not None and session.chat.id == chat_id:
                await session.refresh_chat()
        self.desk.sidebar.refresh()

    # While it runs -----------------------------------------------------------------------------

    def drained(self) -> None:
        """Text was taken from the engine: the figures changed."""
        self.chat_screen.surroundings.refresh_status()

    async def on_event(self, event: events.Event) -> None:
        """What the terminal sends comes in its turn; what comes up from a widget that has no use for it has had that."""
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            await self.key_turns.take(event)
        else:
            await super().on_event(event)

    async def _give(self, event: events.Event) -> None:
        """A paste into one of Textual's own fields is cleaned; the prompt keeps it whole and shows a label."""
        if isinstance(event, events.Paste) and not isinstance(self.focused, PromptBox):
            event = events.Paste(sanitize(event.text))
        await super().on_event(event)

    def on_key(self, event: events.Key) -> None:
        """What is typed while the focus is on its way to the prompt is for the prompt.

        It came to a widget that the user had left and that hands it up; the prompt itself takes all text.
        """
        if event.is_printable and isinstance(self.focused, PromptBox):
            event.prevent_default()
            self.focused.post_message(events.Key(event.key, event.character))

    def on_app_blur(self, event: events.AppBlur) -> None:
        """Nothing changes when the terminal loses the focus: restyling everything would take seconds."""
        event.prevent_default()

    def on_app_focus(self, event: events.AppFocus) -> None:
        """Nothing changes when the terminal gets the focus."""
        event.prevent_default()
