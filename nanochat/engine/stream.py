"""One request's text on its way from the engine's thread to whoever reads it. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nanochat.engine.outputs import CompletionOutput, RequestMetrics
from nanochat.engine.request import Request, Update
from nanochat.errors import NanochatError, UsageError

State = Literal["waiting", "prefilling", "decoding", "finished"]

log = logging.getLogger("nanochat.engine")


@dataclass(frozen=True, slots=True)
class Delta:
    """What came for one reply since the last look. `finished` holds the whole reply when it ended."""

    text: str
    token_ids: tuple[int, ...]
    finished: CompletionOutput | None = None
    index: int = 0


class Stream:
    """A request's replies as they grow. The engine appends and rings; readers drain at their own pace.

    Readers may be threads (`for delta in stream`), coroutines (`async for delta in stream`) or a pump
    that calls `take()` when it likes. One reader at a time. The engine never waits for any of them.

    Leaving `async for` before the end (break, cancellation, `aclose`) cancels the request, as in vLLM: nobody may be left
    to do it. Leaving `for`, or not taking any more, does not: the request goes on, and one may come back or wait for
    `result`; `cancel` ends it.
    """

    def __init__(
        self, request: Request, cancel: Callable[[Stream], None], on_ready: Callable[[], None] | None = None
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.submitted = time.perf_counter()
        self.state: State = "waiting"
        self.prefill_progress: tuple[int, int] = (0, len(request.prompt_ids))
        self.first: RequestMetrics | None = None  # from the first token on; TTFT as the engine saw it
        self._cancel = cancel
        self._bells: list[Callable[[], None]] = [on_ready] if on_ready is not None else []
        self._changed = threading.Condition()
        self._updates: list[Update] = []
        self._outputs: dict[int, CompletionOutput] = {}
        self._first_text: dict[int, float] = {}
        self._awaited = False  # by an iteration
        self._error: NanochatError | None = None

    # The reader's side -------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every reply ended (what came may still wait to be taken)."""
        return self.state == "finished"

    @property
    def error(self) -> NanochatError | None:
        """Why the request was refused or the engine died."""
        return self._error

    def cancel(self) -> None:
        """End the request; its text so far is kept, and it finishes with reason `abort`."""
        if not self.finished:
            self._cancel(self)

    def take_all(self) -> list[Delta]:
        """Everything since the last call, one Delta a reply that changed; does not wait."""
        with self._changed:
            updates, self._updates = self._updates, []
        now = time.perf_counter()
        merged: dict[int, list[Update]] = {}
        for update in updates:
            merged.setdefault(update.index, []).append(update)
        return [self._merge(index, group, now) for index, group in merged.items()]

    def take(self) -> Delta:
        """Everything since the last call, for a request of one reply; does not wait."""
        return next(iter(self.take_all()), Delta("", ()))

    def _merge(self, index: int, updates: list[Update], now: float) -> Delta:
        text = "".join(update.text for update in updates)
        if text:
            self._first_text.setdefault(index, now)
        finished = updates[-1].finished
        if finished is not None:
            finished = self._outputs[index] = self._timed(finished)
        ids = tuple(token for update in updates for token in update.token_ids)
        return Delta(text, ids, finished, index)

    def _timed(self, output: CompletionOutput) -> CompletionOutput:
        """The output with the TTFT that the reader saw."""
        first = self._first_text.get(output.index)
        return (
            output
            if first is None
            else replace(output, metrics=replace(output.metrics, ttft=first - self.submitted))
        )

    def results(self, timeout: float | None = None) -> tuple[CompletionOutput, ...]:
        """Wait for every reply, in order.

        Raises:
            TimeoutError: it takes longer than `timeout` seconds.
            NanochatError: the request was refused, or the engine died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                left = None if deadline is None else deadline - time.monotonic()
                if not self._changed.wait_for(lambda: bool(self._updates) or self.finished, left):
                    raise TimeoutError(f"{self.request_id} did not finish in {timeout} s")
            self.take_all()
            if self.finished and not self._updates:
                break
        if self._error is not None:
            raise self._error
        return tuple(self._outputs[index] for index in sorted(self._outputs))

    def result(self, timeout: float | None = None) -> CompletionOutput:
        """Wait for the first reply; see `results`."""
        return self.results(timeout)[0]

    @contextlib.contextmanager
    def _waiting(self) -> Generator[None]:
        """While an iteration waits no other may: each would miss what the other takes."""
        with self._changed:
            if self._awaited:
                raise UsageError(
                    f"{self.request_id} is being read elsewhere: a stream has one reader at a time"
                )
            self._awaited = True
        try:
            yield
        finally:
            self._awaited = False

    def __iter__(self) -> Iterator[Delta]:
        """What comes, as it comes. Leaving early leaves the request running."""
        while True:
            with self._waiting(), self._changed:
                self._changed.wait_for(lambda: bool(self._updates) or self.finished)
                last = self.finished
            yield from self.take_all()
            if last and not self._updates:
                break
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """What comes, as it comes. Leaving early cancels the request: at once with `aclose` or when the task is cancelled
        while it waits, else as soon as Python lets go of the iterator, which after `break` is the loop's next turn."""
        loop, rung = asyncio.get_running_loop(), asyncio.Event()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(rung.set)

        with self._changed:
            self._bells.append(ring)
        try:
            while True:
                with self._waiting():
                    while not self._updates and not self.finished:
                        await rung.wait()
                        rung.clear()
                last = self.finished
                for delta in self.take_all():
                    yield delta
                if last and not self._updates:
                    break
        except (asyncio.CancelledError, GeneratorExit):
            self.cancel()
            raise
        finally:
            self._bells.remove(ring)
        if self._error is not None:
            raise self._error

    # The engine's side -------------------------------------------------------------------------

    def put(self, update: Update) -> None:
        """Append what a step brought. Called by the engine's thread."""
        with self._changed:
            quiet = not self._updates
            self._updates.append(update)
            self.first = self.first or update.first
            self.state = "finished" if update.last else "decoding"
            self._changed.notify_all()
            bells = tuple(self._bells) if quiet or update.last else ()
        self._ring(bells)

    def fail(self, error: NanochatError) -> None:
        """End the request with an error. Called by the engine's thread."""
        with self._changed:
            self._error = error
            self.state = "finished"
            self._changed.notify_all()
            bells = tuple(self._bells)
        self._ring(bells)

    def _ring(self, bells: Iterable[Callable[[], None]]) -> None:
        """Tell readers. What one of them raises is its own, and it is not told again: the engine goes on for all others."""
        for bell in bells:
            try:
                bell()
            except BaseException:  # SystemExit too: in the engine's thread it would end everybody's engine
                log.exception("a reader's on_ready failed")
                with contextlib.suppress(ValueError):
                    self._bells.remove(bell)
