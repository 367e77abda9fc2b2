"""EngineService: the engine in a background thread. Submit, stream, cancel, load, unload. Imports no torch itself.

One thread owns the EngineCore. Everybody else leaves commands in a queue and rings; the thread takes
commands between steps, so a command waits for one step at most. A load is a command too: what is
submitted while it runs waits behind it. Nothing here ever waits for a reader.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from nanochat.engine.config import EngineConfig
from nanochat.engine.ending import close_core, forget_frames, stopped
from nanochat.engine.load import Load
from nanochat.engine.open_streams import OpenStreams
from nanochat.engine.outputs import EngineStats
from nanochat.engine.request import Request, check_priority
from nanochat.engine.snapshot import snapshot
from nanochat.engine.stream import Delta, Stream
from nanochat.errors import EngineDead, NanochatError

if TYPE_CHECKING:
    from nanochat.engine.core import EngineCore

__all__ = ["Delta", "EngineService", "Load", "Request", "Stream"]

log = logging.getLogger("nanochat.engine")

_RANKS_SECONDS = 0.5  # between two looks at the other ranks of a model that has nothing to do
_LAST_STEP_SECONDS = 60.0  # the end of a program waits that long: a long prompt takes a CPU many seconds
_LAST_LOAD_SECONDS = 5.0

ServiceState = Literal["unloaded", "loading", "ready", "dead"]


class EngineService:
    """The engine for a program that must never wait for it."""

    def __init__(self) -> None:
        self._core: EngineCore | None = None
        self._state: ServiceState = "unloaded"
        self._load: Load | None = None
        self._load_seconds = 0.0
        self._failure: NanochatError | None = None
        self._streams = OpenStreams()  # owned by the thread
        self._commands: deque[Callable[[], None]] = deque()
        self._bell = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    # Called from any thread --------------------------------------------------------------------

    def load(self, config: EngineConfig) -> Load:
        """Start loading a model in the background; one that is loaded is unloaded first, and its requests end."""
        load = Load(config)
        self._state, self._load, self._failure = "loading", load, None
        self._post(lambda: self._do_load(load))
        return load

    def unload(self) -> None:
        """Give the model's memory back. Requests that run end with reason `abort`."""
        self._state, self._load = "unloaded", None
        self._post(self._do_unload)

    def submit(self, request: Request, on_ready: Callable[[], None] | None = None) -> Stream:
        """Queue a request and return its stream at once. During a load it waits for the model.

        Args:
            on_ready: called by the engine's thread when text waits and the reader had drained the stream.

        Raises:
            EngineDead: no model is loaded or being loaded, or the engine stopped.
            EmptyPrompt, ContextOverflow, InvalidSampling: with a loaded model, a request that can never run. During
                a load such a request is refused through its stream, and so is at any time one whose `request_id` another
                has that did not end.
        """
        core = self._core
        if self._state == "dead":
            raise self._failure or EngineDead("the engine stopped: load the model again")
        if self._state == "unloaded":
            raise EngineDead("no model is loaded: load one first")
        if self._state == "ready" and core is not None:
            core.check(request)
        stream = Stream(request, self._cancel, on_ready)
        self._post(lambda: self._do_submit(stream))
        return stream

    def set_priority(self, request_id: str, priority: int) -> None:
        """Change who goes first from the next step on; lower numbers first. Raises InvalidSampling: no whole number."""
        check_priority(priority)
        self._post(lambda: self._core.reprioritise(request_id, priority) if self._core is not None else None)

    def reset_prefix_cache(self) -> None:
        """Forget every reusable prefix; running requests go on."""
        self._post(lambda: self._core.reset_prefix_cache() if self._core is not None else None)

    def stats(self) -> EngineStats:
        """A snapshot. Reading it never waits for the engine."""
        core = self._core
        if core is None:
            error = None if self._failure is None else str(self._failure)
            name = self._load.config.name if self._load is not None and self._state == "loading" else ""
            return EngineStats(state=self._state, model=name, error=error)
        return snapshot(core, self._state, self._load_seconds)

    @property
    def core(self) -> EngineCore | None:
        """The loaded engine, for reading what does not change (tokenizer, model's configuration); None before that."""
        return self._core if self._state == "ready" else None

    def close(self, timeout: float = 10.0) -> None:
        """Unload and end the thread."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return
        self.unload()
        with self._bell:
            self._closing = True
            self._bell.notify_all()
        if thread is not threading.current_thread():
            thread.join(timeout)
        if not thread.is_alive():
            atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        self.close(_LAST_LOAD_SECONDS if self._state == "loading" else _LAST_STEP_SECONDS)

    def _cancel(self, stream: Stream) -> None:
        self._post(lambda: self._do_cancel(stream))

    def _post(self, command: Callable[[], None]) -> None:
        with self._bell:
            if self._thread is None or not self._thread.is_alive():
                self._closing = False
                self._start_thread()
                # An interpreter that ends under a thread that is inside torch aborts the process. The last that registers
                # is called first: before the finalizers that end a model, which register when the first is made.
                weakref.finalize(self, int).detach()
                atexit.register(self._close_at_exit)
            self._commands.append(command)
            self._bell.notify_all()

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nanochat-engine", daemon=True)
        self._thread.start()

    # The engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        going = True
        while going:
            try:
                going = self._turn()
            except BaseException as error:  # whatever it is: every waiting reader must learn of it
                log.exception("the engine stopped")
                if not self._is_left:
                    self._die(stopped(error))

    def _turn(self) -> bool:
        """Wait for something to do and do it; False at the thread's end."""
        with self._bell:
            self._bell.wait_for(
                lambda: (
                    self._commands
                    or self._closing
                    or self._is_left
                    or (self._core is not None and (self._core.has_work or self._core.unprepared))
                ),
                timeout=_RANKS_SECONDS if self._core is not None and self._core.ranks > 1 else None,
            )
            if self._is_left:
                return False
            if self._closing and not self._commands:
                self._thread = None  # who posts from here on starts another
                return False
        while (command := self._next_command()) is not None:
            command()
        if self._is_left:
            return False
        if self._core is not None and (self._core.has_work or not self._core.unprepared):
            self._step(self._core)
        elif self._core is not None and not self._commands:
            self._core.prepare()
        return True

    def _next_command(self) -> Callable[[], None] | None:
        """One by one: a command that this thread hangs in must not keep the others."""
        with self._bell:
            return self._commands.popleft() if self._commands and not self._is_left else None

    @property
    def _is_left(self) -> bool:
        """Whether this thread was left behind: then nothing here is its own any more."""
        return self._thread is not threading.current_thread()

    def _step(self, core: EngineCore) -> None:
        core.check_ranks()
        self._streams.deliver(core.step())
        self._streams.show_prefill(core.sequences)

    def _do_load(self, load: Load) -> None:
        self._do_unload()
        if self._load is load:  # what was loaded before may have died meanwhile
            self._state, self._failure = "loading", None
        started, thread = time.perf_counter(), threading.current_thread()

        def when_stuck(error: NanochatError) -> None:
            self._leave(thread, load, error)

        try:
            from nanochat.engine import loading
            from nanochat.engine.core import EngineCore

            core = EngineCore(load.config, loading.load(load.config, load.report, when_stuck))
        except NanochatError as error:
            self._fail_load(load, error)
        except BaseException as error:  # whatever it is: who waits for the load must learn of it
            log.exception("loading failed")
            name = getattr(load.config.model, "name", load.config.model)  # a script's may be no path
            self._fail_load(load, EngineDead(f"loading {name} failed: {type(error).__name__}: {error}"))
        else:
            if self._is_left or self._load is not load:  # unloaded, or another load was asked for meanwhile
                close_core(core)
                load.finish(EngineDead("the load was called off"))
                return
            self._load_seconds = time.perf_counter() - started
            self._core, self._state = core, "ready"
            load.finish(None)

    def _fail_load(self, load: Load, error: NanochatError) -> None:
        if self._load is load and not self._is_left:
            self._die(error)
        load.finish(error)

    def _do_unload(self) -> None:
        core, self._core = self._core, None
        if core is None:
            return
        try:
            for request_id in self._streams.requests:
                core.abort(request_id)
            self._streams.deliver(core.take_updates())
        except BaseException as error:
            log.exception("ending the requests failed")
            self._streams.fail(stopped(error))
        close_core(core)

    def _do_submit(self, stream: Stream) -> None:
        if self._core is None:  # the load that it waited for failed, or the model was unloaded meanwhile
            stream.fail(self._failure or EngineDead("no model is loaded: load one first"))
            return
        try:
            self._core.add(stream.request, submitted=stream.submitted)
        except NanochatError as error:
            stream.fail(error)
        except BaseException as error:  # the request's own, as long as none of it was queued
            log.exception("a request could not be started")
            stream.fail(
                NanochatError(
                    f"the request could not be started: {type(error).__name__}: {error}; the log has more"
                )
            )
            self._core.abort(stream.request_id)
        else:
            self._streams.add(stream)

    def _do_cancel(self, stream: Stream) -> None:
        if self._core is not None and stream in self._streams:
            self._core.abort(stream.request_id)
            self._streams.deliver(self._core.take_updates())

    def _leave(self, thread: threading.Thread, load: Load, error: NanochatError) -> None:
        """From another thread: the engine's hangs in a call that does not return. A new one does what is left to do."""
        with self._bell:
            if self._thread is not thread:
                return
            core, self._core = self._core, None
            end = self._die if load.done else partial(self._fail_load, load)
            self._commands.appendleft(partial(end, error))
            self._start_thread()
        if core is not None:  # here, because a device that hangs as well is waited for
            close_core(core)

    def _die(self, error: NanochatError) -> None:
        core, self._core = self._core, None
        forget_frames(error)
        self._state, self._failure = "dead", error
        self._streams.fail(error)
        if core is not None:
            close_core(core)
