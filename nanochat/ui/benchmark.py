"""The application's one benchmark: it borrows the device from the chats, follows the run, and gives it back. No Textual.

The run is a process of its own (`nanochat.benchmarks.child`): drawing here does not slow it, and it cannot take the
chats down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nanochat.errors import NanochatError, UsageError
from nanochat.hub import LocalModel

if TYPE_CHECKING:  # imported when the benchmark is opened, not before the first frame
    from nanochat.bench import Plan, Progress, Run
    from nanochat.benchmarks.child import Event
    from nanochat.benchmarks.storage import Results
    from nanochat.ui.app import NanochatApp


class Process(Protocol):
    """A run under way, as `BenchProcess` is."""

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens."""
        ...

    async def stop(self) -> None:
        """End it."""
        ...


class Benchmark:
    """Belongs to the screen's thread. What is on it now can be read at any time; `on_change` tells when.

    Attributes:
        run: the latest run, growing while it is under way; None before the first.
        word: what is being done, where there is no progress to tell.
        rates: tok/s of the last seconds of the case at hand.
        error: why the latest run ended, when it could not run.
    """

    def __init__(self, app: NanochatApp) -> None:
        self._app = app
        self.open: Callable[[Plan], Process] = _open
        self.running = self.stopping = False
        self.run: Run | None = None
        self.progress: Progress | None = None
        self.word = self.error = ""
        self.rates: deque[float] = deque(maxlen=60)
        self.on_change: Callable[[], None] = lambda: None
        self._process: Process | None = None

    async def start(self, plan: Plan) -> None:
        """Begin a run; chats wait meanwhile. Raises UsageError: one runs, or replies are being written."""
        if self.running:
            raise UsageError("a benchmark is running: Esc stops it")
        busy = len(self._app.chats.busy)
        if busy:
            what = "a reply is" if busy == 1 else f"{busy} replies are"
            raise UsageError(
                f"{what} being written: wait for the end, or stop it in its chat, then start again"
            )
        self._app.idle.interrupt()
        self.running, self.stopping = True, False
        self.run, self.progress, self.error, self.word = None, None, "", "unloading the chat's model"
        self.rates.clear()
        self._process = self.open(plan)
        self._app.spawn(self._follow(self._process))
        self.on_change()

    async def stop(self) -> None:
        """End the run; what was finished is kept."""
        if self._process is not None and self.running and not self.stopping:
            self.stopping = True
            self.on_change()
            await self._process.stop()

    async def _follow(self, process: Process) -> None:
        host = self._app.host
        try:
            await host.lend()
            async for event in process.events():
                self._take(event)
                self.on_change()
        except NanochatError as error:
            self.error = str(error)
            if self.run is not None:  # which is shown in the error's place
                self._app.say(self.error, severity="error")
        finally:
            self.running = self.stopping = False
            self._process, self.progress, self.word = None, None, ""
            if not self._app.desk.is_closing:
                host.take_back()
        self.on_change()

    def _take(self, event: Event) -> None:
        from nanochat.bench import Progress
        from nanochat.benchmarks.child import Doing

        if isinstance(event, Doing):
            self.word = event.what
        elif isinstance(event, Progress):
            if self.progress is None or self.progress.case != event.case:
                self.rates.clear()
            self.progress = event
            if event.rate is not None:
                self.rates.append(event.rate)
        else:
            self.run = event.run


def _open(plan: Plan) -> Process:
    from nanochat.benchmarks.child import BenchProcess

    return BenchProcess(plan)


def plan_for(
    name: str,
    model: LocalModel | str,
    *,
    cache: Path,
    device: str,
    dtype: str,
    tensor_parallel_size: int | None,
    repeats: int,
    against: tuple[str, ...],
) -> Plan:
    """A plan for a model of this machine, or for the name of a known shape. Blocks."""
    from nanochat.bench import Plan
    from nanochat.benchmarks.known_shapes import write_shape

    drawn = isinstance(model, str)
    path = write_shape(model, cache / "shapes") if isinstance(model, str) else model.path
    return Plan(
        model=path, model_name=model if isinstance(model, str) else model.name, drawn=drawn, names=(name,),
        device=device, dtype=dtype, tensor_parallel_size=tensor_parallel_size, repeats=repeats, against=against,
    )  # fmt: skip


async def kept_runs(results: Results, most: int = 200) -> list[Run | str]:
    """The latest runs, newest first; of one that cannot be read, why."""
    return await asyncio.to_thread(_read, results, most)


def _read(results: Results, most: int) -> list[Run | str]:
    found: list[Run | str] = []
    for name in reversed(results.names()[-most:]):
        try:
            found.append(results.load(name))
        except NanochatError as error:
            found.append(str(error))
    return found
