"""One reply on its way: it waits for the model, streams, is saved every second, and ends in the history. No Textual."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nanochat.engine.outputs import CompletionOutput, FinishReason, RequestMetrics
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.stream import Stream
from nanochat.errors import HistoryError, NanochatError
from nanochat.storage.records import Message, Running, Status
from nanochat.ui.chat_model import ReplyReader
from nanochat.ui.conversation import Conversation

if TYPE_CHECKING:
    from nanochat.history import History

log = logging.getLogger("nanochat.reply")

VISIBLE, HIDDEN = 0, 1  # priorities in the engine; lower goes first

CHECKPOINT_SECONDS = 1.0
RETRY_SECONDS = 1.0
_RETRIES = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is asked of the engine, and how its answer is read."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    reader: ReplyReader
    context: int


class Submit(Protocol):
    """Hands a request to the engine."""

    def __call__(self, request: Request, on_ready: Callable[[], None]) -> Stream:
        """Returns at once with the stream of the reply."""
        ...


class Stopped(Exception):
    """The user stopped the reply before the engine had it."""


class Reply:
    """Owns a running reply until its message is written. Belongs to the screen's thread; the history to workers."""

    def __init__(
        self, running: Running, conversation: Conversation, history: History, *,
        prepare: Callable[[], Coroutine[Any, Any, Prepared]], submit: Submit, ring: Callable[[], None],
        notify: Callable[[str], None], priority: int = 0,
    ) -> None:  # fmt: skip
        self.running = running
        self.stream: Stream | None = None
        self.prepared: Prepared | None = None
        self.metrics = RequestMetrics()
        self.priority = priority
        self.stopping = False
        self.rates: deque[float] = deque(maxlen=40)  # tokens per second, one a half second
        self._conversation, self._history = conversation, history
        self._prepare, self._submit, self._ring, self._notify = prepare, submit, ring, notify
        self._text, self._reasoning = [running.content], [running.reasoning]
        self._ids = list(running.token_ids)
        self._stop, self._ended = asyncio.Event(), asyncio.Event()
        self._output: CompletionOutput | None = None
        self._saved = 0
        self._saving = asyncio.Lock()
        self._closed = False  # it has its message: there is nothing left to save
        self._end = (Status.DONE, "", "")  # how it ended: its status, why, and what went wrong
        self._arrivals: deque[tuple[float, int]] = deque()
        self._last_rate = 0.0
        self._thinking_since: float | None = None
        self._thought: float | None = None  # seconds, once the answer has begun

    # The life of a reply -----------------------------------------------------------------------

    async def run(self) -> Message | None:
        """From the wait for the model to the message in the history; None when the disk did not take it."""
        status, reason, error = Status.DONE, "", ""
        try:
            self.prepared = await self._until_stopped(self._prepare())
            request = Request(self.prepared.prompt_ids, self.prepared.params, self.priority)
            self.stream = self._submit(request, self._ring)
            if self._stop.is_set():
                self.stream.cancel()
            output = await self._until_ended(self.stream)
            self.metrics, reason, error = output.metrics, str(output.finish_reason or ""), output.error or ""
            if output.finish_reason is FinishReason.ABORT:
                status = Status.STOPPED
            elif output.finish_reason is FinishReason.ERROR:
                status = Status.FAILED
        except Stopped:
            status = Status.STOPPED
        except NanochatError as fault:
            status, error = (Status.STOPPED, "") if self._stop.is_set() else (Status.FAILED, str(fault))
        async with self._saving:
            self._closed, self._end = True, (status, reason, error)
            return await self._finish()

    async def save_again(self) -> Message:
        """Write the message of a reply that has ended. Raises HistoryError: then nothing is lost, and it may be tried again."""
        status, reason, error = self._end
        return await asyncio.to_thread(
            self._history.replies.finish, self.running.id, status, "".join(self._text),
            reasoning="".join(self._reasoning), token_ids=tuple(self._ids), metrics=self._figures(),
            finish_reason=reason, error=error,
        )  # fmt: skip

    def stop(self) -> None:
        """End it: what has come is kept. Also while it waits for the model."""
        self.stopping = True
        self._stop.set()
        if self.stream is not None:
            self.stream.cancel()

    def drain(self) -> bool:
        """Take what the engine has brought into the conversation; returns whether anything changed."""
        stream = self.stream
        if stream is None or self._ended.is_set():
            return False
        delta = stream.take()
        self._ids.extend(delta.token_ids)
        if delta.token_ids:
            self._arrivals.append((monotonic(), len(delta.token_ids)))
        if delta.text and self.prepared is not None:
            piece = self.prepared.reader.push(delta.text)
            self._write(piece.text, piece.reasoning)
        if delta.finished is not None:
            if self.prepared is not None:
                rest = self.prepared.reader.finish()
                self._write(rest.text, rest.reasoning)
            self._output = delta.finished
        if self._output is not None or (stream.finished and stream.error is not None):
            self._ended.set()
        return bool(delta.token_ids) or self._ended.is_set()

    async def save(self) -> None:
        """Take what has come and save it: every second, and for who reads the chat from the history now."""
        self.drain()
        async with self._saving:
            if not self._closed and len(self._ids) != self._saved:
                self._saved = len(self._ids)
                await self._checkpoint()

    @property
    def started(self) -> bool:
        """Whether any text has come."""
        return len(self._text) + len(self._reasoning) > 2

    @property
    def decode_rate(self) -> float:
        """Tokens per second over the last second, as they reach the screen."""
        now = monotonic()
        while self._arrivals and self._arrivals[0][0] < now - 1.0:
            self._arrivals.popleft()
        if len(self._arrivals) < 2:
            return self._last_rate
        span = self._arrivals[-1][0] - self._arrivals[0][0]
        tokens = sum(count for _, count in self._arrivals) - self._arrivals[0][1]
        self._last_rate = tokens / span if span > 0.05 else self._last_rate
        return self._last_rate

    def sample_rate(self) -> None:
        """Put the rate of now into `rates`; for every half second."""
        self.rates.append(self.decode_rate)

    @property
    def num_tokens(self) -> int:
        """Tokens of the reply so far."""
        return len(self._ids)

    # Inside ------------------------------------------------------------------------------------

    def _write(self, text: str, reasoning: str) -> None:
        if text or reasoning:
            self._text.append(text)
            self._reasoning.append(reasoning)
            self._conversation.write(self.running.id, text, reasoning)
            self._time_thought(text, reasoning)

    def _time_thought(self, text: str, reasoning: str) -> None:
        if reasoning and self._thinking_since is None:
            self._thinking_since = monotonic()
        if text.strip() and self._thinking_since is not None and self._thought is None:
            self._thought = monotonic() - self._thinking_since
            self._conversation.change(self.running.id, reasoning_seconds=self._thought)

    async def _until_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Stopped
            return task.result()
        finally:
            stop.cancel()
            task.cancel()

    async def _until_ended(self, stream: Stream) -> CompletionOutput:
        while not self._ended.is_set():
            try:
                await asyncio.wait_for(self._ended.wait(), CHECKPOINT_SECONDS)
            except TimeoutError:
                await self.save()  # a hidden chat is drained here and nowhere else
        if self._output is None:
            raise stream.error or NanochatError("the engine ended the reply without a word")
        return self._output

    async def _checkpoint(self) -> None:
        try:
            await asyncio.to_thread(
                self._history.replies.checkpoint, self.running.id, "".join(self._text),
                reasoning="".join(self._reasoning), token_ids=tuple(self._ids),
            )  # fmt: skip
        except HistoryError as error:
            log.warning("a reply could not be saved for now: %s", error)
            self._notify(f"The reply cannot be saved for now: {error}")

    def _figures(self) -> dict[str, Any]:
        metrics = self.metrics.as_dict() if self.metrics.prompt_tokens else {}
        if self.prepared is not None and self.prepared.reader.reasoned:
            metrics["reasoned"] = True
        if self._thought is not None:
            metrics["reasoning_seconds"] = round(self._thought, 2)
        return metrics

    async def _finish(self) -> Message | None:
        for attempt in range(_RETRIES):
            try:
                return await self.save_again()
            except HistoryError as fault:
                log.error("a reply could not be saved: %s", fault)
                self._notify(f"The reply could not be saved: {fault}")
                if attempt + 1 < _RETRIES:
                    await asyncio.sleep(RETRY_SECONDS)
        return None
