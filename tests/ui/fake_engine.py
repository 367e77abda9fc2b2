"""The engine's edge for tests of the screen: the same interface and the real streams, without a model."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import CompletionOutput, EngineStats, FinishReason, RequestMetrics
from nanochat.engine.request import Request, Update
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.storage.records import Message, Role
from nanochat.ui.chat_model import Asked, Piece

Script = Callable[[Request], Iterable[str]]
MODEL = LocalModel(
    "tiny/Tiny-Chat-1M", Path("/models/tiny"), "cache", 2_000_000, "LlamaForCausalLM", "bfloat16", 1024
)
OTHER = LocalModel(
    "tiny/Tiny-Long-1M", Path("/models/long"), "cache", 3_000_000, "LlamaForCausalLM", "bfloat16", 8192
)


@dataclass
class FakeLoad:
    """A load that ends when the test says so, or at once."""

    config: EngineConfig
    progress: tuple[float, str] = (0.0, "importing torch")
    bytes: tuple[int, int] = (0, 0)
    done: bool = False
    error: NanochatError | None = None

    def finish(self, error: NanochatError | None = None) -> None:
        self.error, self.progress, self.done = error, (1.0, "ready"), True


@dataclass
class FakeEngine:
    """Answers by a script: each piece is one token. With `manual`, the test drives every stream itself."""

    script: Script = lambda request: ("Hello", " there", ".")
    manual: bool = False
    load_at_once: bool = True
    context: int = 1024
    requests: list[Request] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=dict)
    loads: list[FakeLoad] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._state = "unloaded"
        self._work: queue.Queue[Stream | None] = queue.Queue()
        self._written: dict[str, list[str]] = {}
        self._thread: threading.Thread | None = None
        self.gate.set()

    def load(self, config: EngineConfig) -> FakeLoad:
        load = FakeLoad(config)
        self.closed = False
        self.loads.append(load)
        self._state = "loading"
        if self.load_at_once:
            self.finish_load(load)
        return load

    def finish_load(self, load: FakeLoad | None = None, error: NanochatError | None = None) -> None:
        self._state = "ready" if error is None else "dead"
        (load or self.loads[-1]).finish(error)

    def unload(self) -> None:
        self._state = "unloaded"
        for stream in list(self.streams.values()):
            if not stream.finished:
                self.finish(stream, FinishReason.ABORT)

    def close(self, timeout: float = 10.0) -> None:
        self.unload()
        self.closed = True
        self.gate.set()
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def submit(self, request: Request, on_ready: Callable[[], None] | None = None) -> Stream:
        stream = Stream(request, self._cancel, on_ready)
        self.requests.append(request)
        self.streams[request.request_id] = stream
        self._written[request.request_id] = []
        if request.params.max_tokens == 0:
            self.finish(stream)
        elif not self.manual:
            self._start_thread()
            self._work.put(stream)
        return stream

    def set_priority(self, request_id: str, priority: int) -> None:
        self.priorities[request_id] = priority

    def stats(self) -> EngineStats:
        running = sum(not stream.finished for stream in self.streams.values())
        return EngineStats(
            state=self._state, model="tiny", device="cpu", dtype="bfloat16", max_model_len=self.context,
            running=running, blocks_total=100, blocks_free=70, blocks_cached=20, blocks_used=10,
        )  # fmt: skip

    # The test's side ---------------------------------------------------------------------------

    @property
    def last(self) -> Stream:
        return self.streams[self.requests[-1].request_id]

    def prefill(self, stream: Stream, done: int) -> None:
        stream.state = "prefilling"
        stream.prefill_progress = (done, len(stream.request.prompt_ids))

    def emit(self, stream: Stream, *pieces: str) -> None:
        for piece in pieces:
            written = self._written[stream.request_id]
            written.append(piece)
            first = self._metrics(stream, 1) if len(written) == 1 else None
            stream.put(Update(stream.request_id, 0, piece, (len(written),), first=first))

    def finish(
        self, stream: Stream, reason: FinishReason = FinishReason.STOP, error: str | None = None
    ) -> None:
        written = self._written[stream.request_id]
        metrics = self._metrics(stream, len(written))
        output = CompletionOutput(
            0, "".join(written), tuple(range(1, len(written) + 1)), reason, metrics=metrics, error=error
        )
        stream.put(Update(stream.request_id, 0, "", (), output, last=True))

    def _metrics(self, stream: Stream, tokens: int) -> RequestMetrics:
        prompt = len(stream.request.prompt_ids)
        return RequestMetrics(
            prompt_tokens=prompt, cached_tokens=prompt // 2, output_tokens=tokens, prefill_time=0.1, ttft=0.21,
            decode_time=0.01 * max(tokens - 1, 1),
        )  # fmt: skip

    def _cancel(self, stream: Stream) -> None:
        self.cancelled.append(stream.request_id)
        if self.manual and not stream.finished:
            self.finish(stream, FinishReason.ABORT)

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (stream := self._work.get()) is not None:
            limit = stream.request.params.max_tokens or 10**9
            reason = FinishReason.STOP
            for number, piece in enumerate(self.script(stream.request)):
                self.gate.wait()
                if stream.request_id in self.cancelled or self.closed:
                    reason = FinishReason.ABORT
                    break
                if number >= limit:
                    reason = FinishReason.LENGTH
                    break
                self.emit(stream, piece)
            if not stream.finished:
                self.finish(stream, reason)


class FakeReader:
    """Reasoning between <think> and </think>; the markers come in pieces of their own."""

    def __init__(self) -> None:
        self._thinking = self.reasoned = False

    def push(self, text: str) -> Piece:
        answer, reasoning = [], []
        for part in re.split(r"(</?think>)", text):
            if part in ("<think>", "</think>"):
                self._thinking = part == "<think>"
                self.reasoned = True
            else:
                (reasoning if self._thinking else answer).append(part)
        return Piece("".join(answer), "".join(reasoning))

    def finish(self) -> Piece:
        return Piece()


@dataclass
class FakeLanguage:
    """One token a word; a turn costs four more."""

    name: str = MODEL.name
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.6, "top_p": 0.9})
    can_think: bool = True

    def count(self, text: str) -> int:
        return len(text.split())

    def prompt(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0,
        partial: Sequence[int] = (), begin: str = "",
    ) -> Asked:  # fmt: skip
        total = self.count(system_prompt) + sum(self.count(message.content) + 4 for message in messages)
        assert not messages or messages[-1].role is not Role.ASSISTANT
        return Asked((*range(total), *partial), FakeReader())

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> tuple[int, ...]:
        return tuple(
            range(self.count(system_prompt) + sum(self.count(message.content) + 4 for message in messages))
        )

    def tokens(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> int:
        return self.count(system_prompt) + sum(self.count(message.content) + 4 for message in messages)

    def first_kept(
        self, messages: Sequence[Message], limit: int, *, system_prompt: str, thinking: bool | None,
        started: float = 0.0,
    ) -> int | None:  # fmt: skip
        for first, message in enumerate(messages):
            asked = self.prompt(messages[first:], system_prompt=system_prompt, thinking=thinking)
            if message.role is Role.USER and len(asked.ids) <= limit:
                return first
        return None


class FakeShelf:
    """Models on this machine, as a list."""

    def __init__(self, models: Sequence[LocalModel] = (MODEL, OTHER)) -> None:
        self.models = list(models)
        self.fetched: NanochatError | LocalModel = MODEL

    @property
    def has_starter(self) -> bool:
        return False

    def lacks_starter(self, name: str) -> bool:
        return name == "starter" and self.fetched not in self.models

    def installed(self) -> list[LocalModel]:
        return list(self.models)

    def find(self, name: str) -> LocalModel:
        from nanochat.errors import ModelNotFound

        for model in self.models:
            if model.name.lower().endswith(name.lower()):
                return model
        raise ModelNotFound(f"no model {name!r} on this machine")

    def first(self, wanted: str) -> LocalModel | None:
        return self.find(wanted) if wanted else next(iter(self.models), None)

    def fetch_starter(self, report: Callable[[Any], None]) -> LocalModel:
        if isinstance(self.fetched, NanochatError):
            raise self.fetched
        self.models.append(self.fetched)
        return self.fetched
