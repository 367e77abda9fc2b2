"""One reply in the application, from its start to its end, measured."""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from textual._context import active_app

from nanochat.benchmarks.case import Ask, Reply, Stopped
from nanochat.engine.service import EngineService
from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.storage.records import Role, Status
from nanochat.ui.app import NanochatApp
from nanochat.ui.desk import Desk
from nanochat.ui.draft import Draft
from nanochat.ui.drawn_parts import BorrowedEngine, MeasuredPrompt, OneModel, Sink
from nanochat.ui.model_host import HostState

SIZE = (120, 40)
LOOK_SECONDS = 0.1


class DrawnReply:
    """The application from its start to the end of one reply."""

    def __init__(self, service: EngineService, model: LocalModel, ask: Ask) -> None:
        self._service, self._model, self._ask = service, model, ask
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End it at the next look."""
        self._stopped.set()

    def run_in(self, found: Future[Reply]) -> None:
        """Run it in this thread, to its end: the interpreter is as before then, which the application settles."""
        interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
        try:
            found.set_result(asyncio.run(self.run()))
        except BaseException as error:  # whatever it is, the one that waits must learn of it
            found.set_exception(error)
        finally:
            sys.setswitchinterval(interval)
            gc.set_threshold(*thresholds)
            gc.unfreeze()

    async def run(self) -> Reply:
        """Open, send, wait, close. Raises NanochatError: the reply failed."""
        with tempfile.TemporaryDirectory(prefix="nanochat-drawing-") as folder:
            home = Path(folder)
            paths = Paths(home / "config", home / "data", home / "cache", home / "log")
            settings = Settings(theme="dark")
            desk = Desk(
                paths, settings, engine=BorrowedEngine(self._service, self._ask), shelf=OneModel(paths, settings, self._model),
                read=lambda model: MeasuredPrompt(model.name, self._ask.prompt), driver=Sink,
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
        tokens, decoding = int(record.metrics["output_tokens"]), float(record.metrics["decode_time"])
        return Reply(started, time.perf_counter(), tokens, decoding=decoding)

    async def _until(self, true: Callable[[], bool], app: NanochatApp, running: asyncio.Task[None]) -> None:
        while not true():
            if running.done() or app.fault is not None or app.lifetime.failure is not None:
                raise app.lifetime.failure or app.fault or NanochatError("the application ended by itself")
            if self._stopped.is_set():
                raise Stopped
            await asyncio.sleep(LOOK_SECONDS)
