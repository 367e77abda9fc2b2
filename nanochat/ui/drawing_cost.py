"""What drawing costs the engine: the same request on the engine alone, and beneath the application that shows it.

The application is the real one: chats on disk, the pump, the transcript. Its terminal takes everything at once and
shows nothing. It is opened for each measurement and closed after it, so that the engine alone is really alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.benchmarks.case import Ask, Reply, Stopped, Target, Weights
from nanochat.benchmarks.made_vocabulary import write_vocabulary
from nanochat.engine.config import EngineConfig
from nanochat.engine.request import Request
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Stream
from nanochat.errors import NanochatError
from nanochat.hub import LocalModel
from nanochat.ui.drawn_parts import reply_params
from nanochat.ui.drawn_reply import LOOK_SECONDS, DrawnReply

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
            time.sleep(LOOK_SECONDS)
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
        while not (done.wait(LOOK_SECONDS) if isinstance(done, threading.Event) else _done(done)):
            looks += 1
            if self.stopped():
                raise Stopped
            if looks % _RATE_LOOKS == 0 and (rate := self.service.stats().decode_rate):
                self.on_rate(rate)


def _done(future: Future[Reply]) -> bool:
    try:
        future.exception(LOOK_SECONDS)
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

        request = Request(ask.prompt, reply_params(ask))
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
        return Reply(
            streams[0].submitted, time.perf_counter(), metrics.output_tokens, decoding=metrics.decode_time
        )

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
        chat = DrawnReply(self._watched.service, self._model, ask)
        thread = threading.Thread(target=chat.run_in, args=(found,), name="nanochat-drawing")
        thread.start()
        try:
            self._watched.wait(found)
        except Stopped:
            chat.stop()
            raise
        finally:
            thread.join(_PATIENCE)
        return found.result()
