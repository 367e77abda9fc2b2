"""A model that answers on a plain terminal or into a pipe: loading it, streaming its text, stopping it with Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from nanochat.commands.progress_line import ProgressLine
from nanochat.engine.config import EngineConfig
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Stream
from nanochat.errors import InvalidLogits, NanochatError, OutOfMemory

Write = Callable[[str], None]

_QUIET_SECONDS = 1.0  # a load that takes longer shows its progress


class Answerer:
    """The engine with one model, for one reader. The model loads while the caller prepares its prompt."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._service = EngineService()
        self._load = self._service.load(config)

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus reply in tokens; 0 before the model is loaded."""
        return self._service.stats().max_model_len

    def answer(self, prompt_ids: Sequence[int], params: SamplingParams, write: Write) -> CompletionOutput:
        """Stream the reply to `write` and return it whole. Ctrl-C ends the reply early, with reason `abort`.

        Raises:
            NanochatError: the model cannot be loaded, or the request was refused or failed.
            KeyboardInterrupt: Ctrl-C while the model was loading, or a second one.
        """
        self._wait_for_load()
        stream = self._service.submit(Request(tuple(prompt_ids), params))
        finished: CompletionOutput | None = None
        with _stopping(stream):
            for delta in stream:
                if delta.text:
                    write(delta.text)
                finished = delta.finished or finished
        if finished is None:
            raise NanochatError("the engine ended the request without a result: load the model again")
        if finished.finish_reason is FinishReason.ERROR:
            reason = finished.error or "the request failed"
            raise OutOfMemory(reason) if reason.startswith("out of memory") else InvalidLogits(reason)
        return finished

    def close(self) -> None:
        """End the engine."""
        self._service.close()

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, except after Ctrl-C or a broken pipe: the process ends at once, whatever the engine is doing."""
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, BrokenPipeError)):
            self.close()

    def _wait_for_load(self) -> None:
        """Wait for the model; what takes longer than a second is shown on stderr."""
        line, started = ProgressLine(), time.monotonic()
        while not self._load.done:
            try:
                self._load.wait(0.1)
            except TimeoutError:
                if time.monotonic() - started > _QUIET_SECONDS and sys.stderr.isatty():
                    fraction, what = self._load.progress
                    line.fraction(f"{self._config.name}: {what}", fraction)
        line.erase()
        self._load.wait()


@contextmanager
def _stopping(stream: Stream) -> Generator[None]:
    """Inside, Ctrl-C ends the reply; a second one ends the program."""
    before = signal.getsignal(signal.SIGINT)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        stream.cancel()

    if before is signal.SIG_IGN:  # started in the background: Ctrl-C is not meant for us
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
