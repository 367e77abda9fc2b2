"""What drawing costs the engine: the same request on the engine alone, and beneath the application that shows it.

The application is the real one: chats on disk, the pump, the transcript. Its terminal takes everything at once and
shows nothing. It is opened for each measurement and closed after it, so that the engine alone is really alone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from textual._context import active_app
from textual.drivers._writer_thread import WriterThread
from textual.drivers.headless_driver import HeadlessDriver

from nanochat.benchmarks.case import Ask, Reply, Stopped, Target, Weights
from nanochat.benchmarks.made_vocabulary import write_vocabulary
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import EngineStats
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.storage.records import Message, Role, Status
from nanochat.ui.app import NanochatApp
from nanochat.ui.chat_model import Asked, Piece
from nanochat.ui.desk import Desk
from nanochat.ui.draft import Draft
from nanochat.ui.model_host import HostState
from nanochat.ui.shelf import Shelf

SIZE = (120, 40)
_LOOK_SECONDS = 0.1
_RATE_LOOKS = 3
_PATIENCE = 60.0


class DrawingCost:
    """One engine, and the two ways in which it is asked.

    Raises:
        NanochatError: the model cannot be loaded.
    """

    def __init__(
        self, model: Path, name: str, options: Mapping[str, Any], stopped: Callable[[], bool],
        on_rate: Callable[[float], None],
    ) -> None:  # fmt: skip
        if options.get("random_weights"):
            from nanochat.engine.models.config import ModelConfig

            write_vocabulary(model, ModelConfig.from_folder(model).vocab_size)
        self._service = EngineService()
        load = self._service.load(EngineConfig(model=model, **options))
        while not load.done:
            if stopped():
                self._service.close(1.0)
                raise KeyboardInterrupt
            time.sleep(_LOOK_SECONDS)
        load.wait()
        assert self._service.core is not None
        self.kernels = self._service.core.describe()
        watch = _Watched(self._service, stopped, on_rate)
        local = LocalModel(name, model, "folder", 0)
        self.targets: list[Target] = [Alone(watch), Drawing(watch, local)]

    def close(self) -> None:
        """Give the memory back."""
        self._service.close()


@dataclass(frozen=True, slots=True)
class _Watched:
    """An engine, and what is asked and told while a request runs."""

    service: EngineService
    stopped: Callable[[], bool]
    on_rate: Callable[[float], None]

    def wait(self, done: threading.Event | Future[Reply]) -> None:
        """Until it is done; a few looks a second cost nothing. Raises Stopped."""
        looks = 0
        while not (done.wait(_LOOK_SECONDS) if isinstance(done, threading.Event) else _done(done)):
            looks += 1
            if self.stopped():
                raise Stopped
            if looks % _RATE_LOOKS == 0 and (rate := self.service.stats().decode_rate):
                self.on_rate(rate)


def _done(future: Future[Reply]) -> bool:
    try:
        future.exception(_LOOK_SECONDS)
    except TimeoutError:
        return False
    return True


class Alone:
    """The engine's service; nobody reads the text before its end."""

    name = "nanochat"
    streams = True
    about = ""
    weights: Weights = "as planned"

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        return [self._alone(ask) for ask in asks]

    def _alone(self, ask: Ask) -> Reply:
        done = threading.Event()
        streams: list[Stream] = []

        def rung() -> None:
            if streams and streams[0].finished:
                done.set()

        request = Request(ask.prompt, _params(ask))
        streams.append(self._watched.service.submit(request, rung))
        rung()
        try:
            self._watched.wait(done)
        except Stopped:
            streams[0].cancel()
            raise
        output = streams[0].result(_PATIENCE)
        if output.error:
            raise NanochatError(output.error)
        metrics = output.metrics
        return _reply(streams[0].submitted, metrics.output_tokens, metrics.decode_time)

    def forget(self) -> None:
        """See `Target`."""
        self._watched.service.reset_prefix_cache()

    def close(self) -> None:
        """The engine is closed by who opened it."""


class Drawing(Alone):
    """The same service beneath the application, which streams the reply into its transcript."""

    name = "nanochat, drawing"

    def __init__(self, watched: _Watched, model: LocalModel) -> None:
        super().__init__(watched)
        self._model = model

    def _alone(self, ask: Ask) -> Reply:
        found: Future[Reply] = Future()
        chat = _Chat(self._watched.service, self._model, ask)
        thread = threading.Thread(target=_in_thread, args=(chat, found), name="nanochat-drawing")
        thread.start()
        try:
            self._watched.wait(found)
        except Stopped:
            chat.stop()
            raise
        finally:
            thread.join(_PATIENCE)
        return found.result()


def _in_thread(chat: _Chat, found: Future[Reply]) -> None:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    try:
        found.set_result(asyncio.run(chat.run()))
    except BaseException as error:  # whatever it is, the one that waits must learn of it
        found.set_exception(error)
    finally:  # the application settles the interpreter to its own liking
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _Chat:
    """The application from its start to the end of one reply."""

    def __init__(self, service: EngineService, model: LocalModel, ask: Ask) -> None:
        self._service, self._model, self._ask = service, model, ask
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End it at the next look."""
        self._stopped.set()

    async def run(self) -> Reply:
        """Open, send, wait, close. Raises NanochatError: the reply failed."""
        with tempfile.TemporaryDirectory(prefix="nanochat-drawing-") as folder:
            home = Path(folder)
            paths = Paths(home / "config", home / "data", home / "cache", home / "log")
            settings = Settings(theme="dark")
            desk = Desk(
                paths, settings, engine=_Borrowed(self._service, self._ask), shelf=_OneModel(paths, settings, self._model),
                read=lambda model: _Prompt(model.name, self._ask.prompt), driver=_Sink,
            )  # fmt: skip
            app = NanochatApp(desk)
            running = asyncio.create_task(app.run_async(size=SIZE))
            token = active_app.set(app)
            try:
                return await self._one_reply(app, running)
            finally:
                if not running.done():  # else it ended by itself, and what it ended with is told
                    await desk.close(app)
                    app.exit()
                await running
                active_app.reset(token)

    async def _one_reply(self, app: NanochatApp, running: asyncio.Task[None]) -> Reply:
        def ready() -> bool:
            return (
                app.desk.is_open
                and app.host.state is HostState.READY
                and bool(app.chat_screen.query("#transcript"))
            )

        await self._until(ready, app, running)
        session = app.chats.active
        started = time.perf_counter()
        app.send(Draft.of("Write."))
        await self._until(lambda: bool(session.last(Role.ASSISTANT)) and not session.busy, app, running)
        record = session.last(Role.ASSISTANT)
        assert record is not None
        if record.status is not Status.DONE:
            raise NanochatError(f"the drawn reply ended as {record.status}: {record.error}")
        return _reply(started, int(record.metrics["output_tokens"]), float(record.metrics["decode_time"]))

    async def _until(self, true: Callable[[], bool], app: NanochatApp, running: asyncio.Task[None]) -> None:
        while not true():
            if running.done() or app.fault is not None or app.failure is not None:
                raise app.failure or app.fault or NanochatError("the application ended by itself")
            if self._stopped.is_set():
                raise Stopped
            await asyncio.sleep(_LOOK_SECONDS)


def _params(ask: Ask) -> SamplingParams:
    return SamplingParams(temperature=ask.temperature, max_tokens=ask.output, ignore_eos=True)


def _reply(submitted: float, tokens: int, decoding: float) -> Reply:
    return Reply(submitted, time.perf_counter(), tokens, decoding=decoding)


class _Borrowed:
    """The engine as the application sees it; the model is loaded already and stays. Replies are as long as asked."""

    def __init__(self, service: EngineService, ask: Ask) -> None:
        self._service, self._ask = service, ask

    def load(self, config: EngineConfig) -> _Loaded:
        """It is."""
        return _Loaded()

    def unload(self) -> None:
        """It stays."""

    def close(self, timeout: float = 10.0) -> None:
        """It stays."""

    def submit(self, request: Request, on_ready: Callable[[], None] | None = None) -> Stream:
        """Queue a request."""
        return self._service.submit(replace(request, params=_params(self._ask)), on_ready)

    def set_priority(self, request_id: str, priority: int) -> None:
        """Change who goes first."""
        self._service.set_priority(request_id, priority)

    def stats(self) -> EngineStats:
        """A snapshot."""
        return self._service.stats()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A load that has ended well."""

    progress: tuple[float, str] = (1.0, "ready")
    bytes: tuple[int, int] = (0, 0)
    done: bool = True
    error: NanochatError | None = None


class _OneModel(Shelf):
    """Knows the measured model and no other."""

    def __init__(self, paths: Paths, settings: Settings, model: LocalModel) -> None:
        super().__init__(paths, settings)
        self._model = model

    def installed(self) -> list[LocalModel]:
        """The model."""
        return [self._model]

    def find(self, name: str) -> LocalModel:
        """The model, whatever it is called."""
        return self._model

    def first(self, wanted: str) -> LocalModel | None:
        """The model."""
        return self._model


class _Plain:
    """Reads a reply as it comes."""

    reasoned = False

    def push(self, text: str) -> Piece:
        """All of it is answer."""
        return Piece(text)

    def finish(self) -> Piece:
        """Nothing was held back."""
        return Piece()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A language in which every chat is the measured prompt."""

    name: str
    ids: tuple[int, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    can_think: bool = False

    def count(self, text: str) -> int:
        """Roughly."""
        return len(text.split())

    def prompt(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0,
        partial: Sequence[int] = (), begin: str = "",
    ) -> Asked:  # fmt: skip
        """The measured prompt."""
        return Asked(self.ids, _Plain())

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> tuple[int, ...]:
        """Nothing: there is no next turn."""
        return ()

    def first_kept(
        self, messages: Sequence[Message], limit: int, *, system_prompt: str, thinking: bool | None,
        started: float = 0.0,
    ) -> int | None:  # fmt: skip
        """It cannot be shortened."""
        return None


class _Sink(HeadlessDriver):
    """A terminal that takes everything at once: what is drawn is really written, by Textual's own writing thread."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._file: IO[str] = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed in `close`
        self._writer = WriterThread(self._file)
        self._writer.start()

    @property
    def is_headless(self) -> bool:
        """No: a headless application does not write its frames."""
        return False

    def write(self, data: str) -> None:
        """Write as to a terminal."""
        self._writer.write(data)

    def close(self) -> None:
        """End the writing thread."""
        self._writer.stop()
        self._file.close()
