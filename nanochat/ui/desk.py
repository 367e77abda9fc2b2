"""What stands behind the screens: engine, history, open chats and idle work; how they are opened, tended and closed."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual.driver import Driver

from nanochat.disk_faults import why_unwritable
from nanochat.engine import garbage
from nanochat.engine.config import EngineConfig
from nanochat.errors import ModelError
from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.storage.records import Message
from nanochat.ui import keymap, overflow_flow, queue_flow, sending, unload_flow
from nanochat.ui.chat_model import ChatModel
from nanochat.ui.chat_settings import ChatSettings
from nanochat.ui.end_signals import EndSignals
from nanochat.ui.engine_port import Engine
from nanochat.ui.engine_settings import screen_config
from nanochat.ui.idle_work import IdleWork
from nanochat.ui.model_host import HostState, ModelHost
from nanochat.ui.monitor import Monitor, Reading
from nanochat.ui.offers import Offers
from nanochat.ui.open_chats import OpenChats
from nanochat.ui.pump import Pump
from nanochat.ui.services import Services
from nanochat.ui.session import ChatSession
from nanochat.ui.shelf import Shelf
from nanochat.ui.sidebar_flow import SidebarFlow

if TYPE_CHECKING:
    from nanochat.history import History
    from nanochat.ui.app import NanochatApp
    from nanochat.ui.models_flow import ModelsFlow

log = logging.getLogger("nanochat.desk")

CLOSE_SECONDS = 5.0
ENGINE_SECONDS = 2.0
GPU_SWITCH_INTERVAL = 0.0005  # a drawing screen costs a GPU engine least so (measured)


class Desk:
    """Owned by the application; belongs to the screen's thread. The arguments are the edges that tests replace."""

    def __init__(
        self, paths: Paths, settings: Settings, *, engine: Engine, shelf: Shelf,
        read: Callable[[LocalModel], ChatModel], wanted: str = "", driver: type[Driver] | None = None,
        ascii_only: bool = False, watch_device: bool = True, tensor_parallel_size: int | None = None,
    ) -> None:  # fmt: skip
        self.paths, self.settings = paths, settings
        self.tensor_parallel_size = tensor_parallel_size or settings.tensor_parallel_size or None
        """Over how many devices a model is split: what the command line says, else the settings; None is as few as hold it."""
        self.engine, self.shelf = engine, shelf
        self.driver, self.ascii_only = driver, ascii_only
        self.insisted: set[Path] = set()
        """Models that the user has loaded although they do not fit: they are loaded so again, after idle time too."""
        self.opened = asyncio.Event()
        self.history: History
        self.host: ModelHost
        self.chats: OpenChats
        self.idle: IdleWork
        self.offers: Offers
        self.sidebar: SidebarFlow
        self.signals: EndSignals
        self.models: ModelsFlow
        self._read, self._wanted, self._watch_device = read, wanted, watch_device
        self._monitor: Monitor | None = None
        self._others: tuple[int, ...] = ()
        self._closing = False

    @property
    def is_open(self) -> bool:
        """Whether the chats are there."""
        return self.opened.is_set()

    @property
    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closing

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return self.is_open and self.host.state is HostState.LOADING

    # Opening -----------------------------------------------------------------------------------

    async def open(self, app: NanochatApp) -> None:
        """Open the history and the tabs. Raises HistoryError: then nothing works."""
        self.history = await asyncio.to_thread(_open_history, self.paths.data / "chats")
        await asyncio.to_thread(app.inputs.load)
        self.host = ModelHost(
            self.engine, configure=lambda folder: self._configure(app, folder), find=self.shelf.find,
            read=self._read, may_unload=lambda name: unload_flow.ask(app, name),
            on_change=lambda: self._host_changed(app),
        )  # fmt: skip
        pump = Pump(lambda: self._look(app), lambda: _painted(app))
        services = Services(
            history=self.history, host=self.host, ring=pump.ring, notify=lambda text: app.say(text, severity="warning"),
            changed=lambda session: self._chat_changed(app, session),
            ended=lambda session, record: self._reply_ended(app, session, record),
            ask_overflow=lambda session, needed: overflow_flow.ask(app, session, needed),
            withdrawn=lambda session, text, choice: overflow_flow.taken_back(app, session, text, choice),
            go_on=lambda session: sending.send_next(app, session),
            give_back=lambda session: queue_flow.give_back(app, session),
        )  # fmt: skip
        self.chats = OpenChats(
            services, defaults=ChatSettings(system_prompt=app.settings.system_prompt), keep=app.chat_screen.keep_draft
        )  # fmt: skip
        self.idle = IdleWork(
            self.history, self.host, busy=lambda: bool(self.chats.busy),
            titled=lambda chat_id: app.attempt(app.chats_changed(chat_id)),
        )  # fmt: skip
        self.host.before_submit = self.idle.interrupt
        self.offers, self.sidebar, self.signals = Offers(app), SidebarFlow(app), EndSignals(app)
        self.models = await asyncio.to_thread(_models_flow, app)
        await self.chats.restore()
        self.opened.set()
        app.spawn(pump.run())
        app.spawn(self.idle.run())
        self.signals.listen()
        if self._watch_device:
            loop = asyncio.get_running_loop()
            self._monitor = Monitor(lambda reading: _call(loop, lambda: self._took_reading(app, reading)))
            self._monitor.start()

    async def welcome(self, app: NanochatApp) -> None:
        """Begin to load the model, or offer one; say who else is here and what was saved from a crash."""
        app.spawn(self.offers.look())
        app.spawn(self.models.open())
        self._others = await asyncio.to_thread(self.history.others)
        if self._others:
            app.say(
                f"Another nanochat is open on these chats (process {', '.join(map(str, self._others))}). Both may be "
                "used; a model loaded in both takes its memory twice.", severity="warning",
            )  # fmt: skip
        if unlogged := await asyncio.to_thread(why_unwritable, self.paths.log_file):
            app.say(f"There is no log: {unlogged}. Everything else works without it.", severity="warning")
        if self.history.recovered:
            number = len(self.history.recovered)
            saved = "An interrupted reply was" if number == 1 else f"{number} interrupted replies were"
            app.say(f"{saved} saved: /continue or /retry goes on.")
        if app.settings.keymap:
            app.spawn(self._look_at_keymap(app))
        model = None
        try:
            model = await asyncio.to_thread(self.shelf.first, self._wanted)
        except ModelError as error:
            app.say(str(error), severity="error")
        self.offers.began = True
        if model is not None:
            self.host.start(model)
        else:
            app.chat_screen.surroundings.refresh_frame()

    async def _look_at_keymap(self, app: NanochatApp) -> None:
        """Say what the user's key map names in vain."""
        unknown = await asyncio.to_thread(keymap.unknown, app.settings.keymap, app.registry)
        if unknown:
            app.say(
                f"[ui.keymap] in {app.paths.settings_file} has keys for {', '.join(unknown)}: there is no such "
                "action. F1 lists them.", severity="warning",
            )  # fmt: skip

    # Closing -----------------------------------------------------------------------------------

    async def close(self, app: NanochatApp) -> None:
        """Stop and save everything. After some seconds it ends in any case: nothing that was saved is lost."""
        if self._closing:
            return
        self._closing = True
        if not self.is_open:
            return
        app.chat_screen.keep_draft()
        self.offers.stop()
        self.idle.interrupt()
        if self._monitor is not None:
            self._monitor.stop()
        try:
            await asyncio.wait_for(self.chats.close_all(), CLOSE_SECONDS)
        except TimeoutError:
            log.error("not every reply could be ended within %s s", CLOSE_SECONDS)
        app.cancel_spawned()
        await asyncio.to_thread(app.inputs.save)
        await asyncio.to_thread(self.models.close)
        await asyncio.to_thread(self.engine.close, ENGINE_SECONDS)
        await asyncio.to_thread(self.history.close)

    # Tending -----------------------------------------------------------------------------------

    def _look(self, app: NanochatApp) -> None:
        """Take text from the engine: for the chat in view, and for others only their first text and their end."""
        for session in self.chats:
            reply = session.reply
            if reply is None or reply.stream is None:
                continue
            if session.visible or not reply.started or reply.stream.finished:
                reply.drain()
        app.drained()

    def _chat_changed(self, app: NanochatApp, session: ChatSession) -> None:
        if self.is_open and not self._closing:
            app.chat_screen.surroundings.refresh()
            if session.visible:
                app.tokens.show_chat()
            if session.chat is not None:
                self.sidebar.chat_changed(session.chat.id)

    def _reply_ended(self, app: NanochatApp, session: ChatSession, record: Message | None) -> None:
        if self._closing:
            return
        app.chat_screen.surroundings.refresh()
        app.chat_screen.surroundings.refresh_panel()
        self.sidebar.refresh()
        if record is not None and record.content:
            self.idle.reply_ended(session)

    def _host_changed(self, app: NanochatApp) -> None:
        if self._closing or not self.is_open:
            return
        self.offers.refresh()
        self.models.host_changed()
        app.chat_screen.surroundings.refresh()
        app.chat_screen.surroundings.refresh_panel()
        if self.host.state is HostState.READY:
            self._settle_interpreter()
            app.tokens.show(app.chat_screen.prompt.draft)
            app.tokens.show_chat()
        elif self.host.state is HostState.FAILED:
            app.say(self.host.error, severity="error")

    def _settle_interpreter(self) -> None:
        """What is loaded by now stays: collecting garbage must not walk through it again and stop the screen."""
        garbage.settle()
        if self.engine.stats().device.startswith("cuda"):
            sys.setswitchinterval(GPU_SWITCH_INTERVAL)

    def _took_reading(self, app: NanochatApp, reading: Reading) -> None:
        app.reading = reading
        app.chat_screen.surroundings.refresh_status()

    def _configure(self, app: NanochatApp, folder: Path) -> EngineConfig:
        """How a model is loaded; in a worker, right before it is: then it is also measured whether it fits."""
        self.models.memory.measure(folder)
        return screen_config(
            folder, app.settings, overcommit=folder in self.insisted, ranks=self.tensor_parallel_size
        )


def _open_history(folder: Path) -> History:
    from nanochat.history import History  # SQLite: in a worker, after the first frame

    return History.open(folder)


def _models_flow(app: NanochatApp) -> ModelsFlow:
    from nanochat.ui.models_flow import (
        ModelsFlow,  # catalogue, cache and queue: in a worker, after the first frame
    )

    return ModelsFlow(app)


async def _painted(app: NanochatApp) -> None:
    """Until what changed has been drawn; at most half a second, where nothing is drawn."""
    drawn = asyncio.Event()
    app.screen.call_after_refresh(drawn.set)
    try:
        await asyncio.wait_for(drawn.wait(), 0.5)
    except TimeoutError:
        log.debug("nothing was drawn for half a second")


def _call(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        log.debug("the event loop has ended")
