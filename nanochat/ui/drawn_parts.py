"""What stands in for engine, models, language and terminal where one reply is drawn to be measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from textual.drivers._writer_thread import WriterThread
from textual.drivers.headless_driver import HeadlessDriver

from nanochat.benchmarks.case import Ask
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import EngineStats
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.settings import Paths, Settings
from nanochat.storage.records import Message
from nanochat.ui.chat_model import Asked, Piece
from nanochat.ui.shelf import Shelf


def reply_params(ask: Ask) -> SamplingParams:
    """A reply exactly as long as asked."""
    return SamplingParams(temperature=ask.temperature, max_tokens=ask.output, ignore_eos=True)


class BorrowedEngine:
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
        return self._service.submit(replace(request, params=reply_params(self._ask)), on_ready)

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


class OneModel(Shelf):
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


class PlainReader:
    """Reads a reply as it comes."""

    reasoned = False

    def push(self, text: str) -> Piece:
        """All of it is answer."""
        return Piece(text)

    def finish(self) -> Piece:
        """Nothing was held back."""
        return Piece()


@dataclass(frozen=True, slots=True)
class MeasuredPrompt:
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
        return Asked(self.ids, PlainReader())

    def warm(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> tuple[int, ...]:
        """Nothing: there is no next turn."""
        return ()

    def tokens(
        self, messages: Sequence[Message], *, system_prompt: str, thinking: bool | None, started: float = 0.0
    ) -> int:
        """The measured prompt and the reply to it, roughly."""
        return len(self.ids) + (self.count(messages[-1].content) if messages else 0)

    def first_kept(
        self, messages: Sequence[Message], limit: int, *, system_prompt: str, thinking: bool | None,
        started: float = 0.0,
    ) -> int | None:  # fmt: skip
        """It cannot be shortened."""
        return None


class Sink(HeadlessDriver):
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
