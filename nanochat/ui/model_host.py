"""The one engine of the application and the model in it: loading, switching, and waiting until it is ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from nanochat.engine.config import EngineConfig
from nanochat.engine.request import Request
from nanochat.engine.stream import Stream
from nanochat.errors import EngineDead, NanochatError
from nanochat.hub import LocalModel
from nanochat.ui.chat_model import ChatModel
from nanochat.ui.engine_port import Engine, LoadHandle

log = logging.getLogger("nanochat.model_host")

POLL_SECONDS = 0.05


class HostState(StrEnum):
    """Where the engine stands."""

    NONE = "no model"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model that can be asked now, and its context in tokens."""

    language: ChatModel
    context: int


class Kept(NanochatError):
    """The user chose to keep the model that is in use."""


class ModelHost:
    """Owns the engine. Belongs to the screen's thread; what blocks runs in workers.

    Args:
        engine: the engine's service.
        configure: a model's folder to the configuration it is loaded with.
        find: a model by its name. Raises ModelNotFound. May block.
        read: a model to its language. May block.
        may_unload: asks whether the loaded model, which is in use, may make room for another.
        on_change: called when the state changed.
    """

    def __init__(
        self, engine: Engine, *, configure: Callable[[Path], EngineConfig], find: Callable[[str], LocalModel],
        read: Callable[[LocalModel], ChatModel], may_unload: Callable[[str], Awaitable[bool]],
        on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        self.engine = engine
        self.state = HostState.NONE
        self.language: ChatModel | None = None
        self.context = 0
        self.error = ""
        self.died = False
        """Whether what failed was no load, but an engine that ran."""
        self.last_used = time.monotonic()
        self.before_submit: Callable[[], None] = lambda: None
        self._configure, self._find, self._read = configure, find, read
        self._may_unload, self._on_change = may_unload, on_change
        self._model: LocalModel | None = None
        self._load: LoadHandle | None = None
        self._loading: asyncio.Task[ReadyModel] | None = None
        self._chosen = asyncio.Event()
        self._home = asyncio.Event()  # the device is ours: not lent to a benchmark
        self._home.set()
        self._lent: LocalModel | None = None  # what was loaded then

    @property
    def model(self) -> LocalModel | None:
        """The model that is loaded, being loaded, or was last asked for."""
        return self._model

    @property
    def progress(self) -> tuple[float, str]:
        """How far the load is: (fraction, what is being done, with the bytes of weights that are read)."""
        if self._load is None or self.state is not HostState.LOADING:
            return 0.0, ""
        share, what = self._load.progress
        done, total = self._load.bytes
        return share, f"{what} {done / 1e9:.1f} of {total / 1e9:.1f} GB" if total else what

    def start(self, model: LocalModel) -> None:
        """Load a model without waiting; one that is loaded makes room. Failure shows in `state` and `error`."""
        if not self._home.is_set():
            self._model = self._lent = model
            self._chosen.set()
            self._on_change()
            return
        task = self._begin(model)
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())

    async def ready(self, name: str = "") -> ReadyModel:
        """Wait until the model of this name ("" is the one chosen) can be asked; loads it where needed.

        With no model chosen yet it waits for the choice. Raises NanochatError: no such model, the load failed, or the
        user keeps the one in use.
        """
        while True:
            await self._home.wait()
            self.last_used = time.monotonic()
            task = await self._wanted(name)
            await asyncio.wait({task})
            if not task.cancelled():
                return task.result()
            # That load was called off for another model: see what is wanted now.

    async def _wanted(self, name: str) -> asyncio.Task[ReadyModel]:
        """The load of the model that is wanted: the one under way or done, else a new one."""
        model = await asyncio.to_thread(self._find, name) if name else self._model
        while model is None:
            await self._chosen.wait()
            model = self._model
        same = self._model is not None and model.path == self._model.path
        if same and self._loading is not None:
            died_since = self._loading.done() and self.engine.stats().state == "dead"
            if not died_since:
                return self._loading
        other = not same and self.state in (HostState.READY, HostState.LOADING)
        if other:
            await self.check(model)
        if other and not await self._may_unload(model.name):
            kept = self._model.name if self._model else "the other model"
            raise Kept(
                f"{kept} stays loaded, and this chat wants {model.name}: send again when it may be unloaded"
            )
        return self._begin(model)

    async def check(self, model: LocalModel) -> None:
        """See whether a model runs here and chats, before anything makes room for it. Raises NanochatError when not."""
        await asyncio.to_thread(self._read, model)

    @property
    def failed(self) -> str:
        """What has happened to the model, in words before `error`."""
        return "stopped" if self.died else "could not be loaded"

    def look(self) -> None:
        """See whether the engine has died since it was loaded: the next message loads the model again."""
        if self.state is HostState.READY and (stats := self.engine.stats()).state == "dead":
            self._loading, self.died = None, True
            self.error = stats.error or "the engine stopped: the next message loads the model again"
            self._set(HostState.FAILED)

    def unload(self) -> None:
        """Give the memory back; the next message loads the model again."""
        if self._loading is not None:
            self._loading.cancel()
        self._loading, self._load = None, None
        self.engine.unload()
        self._set(HostState.NONE)

    def forget(self) -> None:
        """Unload, and have no model any more: its files are about to go."""
        self._model, self.language = None, None
        self._chosen.clear()
        self.unload()

    async def lend(self) -> None:
        """Give the device away for a while: unload. Whoever wants a model waits until `take_back`."""
        self._lent = self._model if self.state in (HostState.READY, HostState.LOADING) else None
        self._home.clear()
        load = self._load
        self.unload()
        await asyncio.to_thread(self.engine.close)
        while (
            load is not None and not load.done
        ):  # a load cannot be interrupted: `close` waits for some seconds only
            await asyncio.sleep(POLL_SECONDS)

    def take_back(self) -> None:
        """The device is ours again: the model that was loaded before is loaded again."""
        model, self._lent = self._lent, None
        self._home.set()
        if model is not None:
            self.start(model)

    def submit(self, request: Request, on_ready: Callable[[], None]) -> Stream:
        """Queue a request that somebody waits for."""
        self.before_submit()
        self.last_used = time.monotonic()
        return self.engine.submit(request, on_ready)

    def close(self) -> None:
        """End the engine; may take some seconds."""
        self.engine.close()

    def _begin(self, model: LocalModel) -> asyncio.Task[ReadyModel]:
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        self._model, self.language, self.error, self.died = model, None, "", False
        self._chosen.set()
        self._loading = asyncio.create_task(self._run(model))
        self._set(HostState.LOADING)
        return self._loading

    async def _run(self, model: LocalModel) -> ReadyModel:
        try:
            self._load = load = self.engine.load(await asyncio.to_thread(self._configure, model.path))
            language = await asyncio.to_thread(self._read, model)
            self.language = language
            self._on_change()
            while not load.done:  # not `wait` in a worker: quitting must not wait for a load
                await asyncio.sleep(POLL_SECONDS)
            if load.error is not None:
                raise load.error
        except NanochatError as error:
            self._fail(model, error)
            raise
        except Exception as error:
            log.exception("loading %s failed", model.name)
            fault = EngineDead(f"loading {model.name} failed: {type(error).__name__}: {error}")
            self._fail(model, fault)
            raise fault from error
        self.context = self.engine.stats().max_model_len
        self._set(HostState.READY)
        return ReadyModel(language, self.context)

    def _fail(self, model: LocalModel, error: NanochatError) -> None:
        if model is self._model:
            self._loading, self.error = None, str(error)
            self._set(HostState.FAILED)

    def _set(self, state: HostState) -> None:
        self.state = state
        self._on_change()
