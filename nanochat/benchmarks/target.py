"""Our own engine under measurement: through its core's loop, as `LLM.generate` drives it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from nanochat.benchmarks.case import Ask, Reply, Stopped, Weights
from nanochat.engine import garbage
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request, Update
from nanochat.engine.sampling_params import SamplingParams
from nanochat.errors import NanochatError, OutOfMemory

Clock = Callable[[], float]

RATE_SECONDS = 0.25
"""How often the rate of now is told while something runs: seldom enough to cost nothing."""


class Core(Protocol):
    """The part of `EngineCore` that is used here."""

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request."""
        ...

    def step(self) -> list[Update]:
        """One step."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class CoreTarget:
    """An `EngineCore`. Tokens count as arrived when the loop that called `step` holds them."""

    streams = True
    about = ""  # its kernels are told by themselves

    def __init__(
        self,
        core: Core,
        *,
        name: str = "nanochat",
        clock: Clock = time.perf_counter,
        stopped: Callable[[], bool] = lambda: False,
        on_rate: Callable[[float], None] = lambda _: None,
        collectives: Callable[[], float | None] | None = None,
        weights: Weights = "as planned",
    ) -> None:
        """`collectives` tells the seconds that were spent in exchanges between ranks so far."""
        self.name = name
        self.weights: Weights = weights
        self._core, self._clock, self._stopped, self._on_rate = core, clock, stopped, on_rate
        self._collectives = collectives

    @property
    def collective_seconds(self) -> float | None:
        """Spent in exchanges between ranks so far; None where there are none, or where no host waits for them."""
        return self._collectives() if self._collectives is not None else None

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """See `Target`."""
        flight = _Flight(self._core, self._clock, asks, self._on_rate)
        try:
            with garbage.of_before_left_alone():  # as `LLM.generate` does
                while not flight.done(until):
                    if self._stopped():
                        raise Stopped
                    flight.submit_due()
                    flight.take_in(self._core.step(), until)
            return flight.replies()
        finally:
            self._drain(flight)

    def _drain(self, flight: _Flight) -> None:
        for request_id in flight.open:
            self._core.abort(request_id)
        if flight.open:
            self._core.step()  # hands out what the aborts left
        while self._core.has_work:
            self._core.step()

    def forget(self) -> None:
        """See `Target`."""
        self._core.reset_prefix_cache()

    def close(self) -> None:
        """See `Target`."""
        self._core.close()


class _Flight:
    """Asks on their way."""

    def __init__(
        self, core: Core, clock: Clock, asks: Sequence[Ask], on_rate: Callable[[float], None]
    ) -> None:
        self._core, self._clock, self._asks, self._on_rate = core, clock, asks, on_rate
        self._told, self._untold = clock(), 0  # when the rate was told last, and tokens since
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._submitted: list[float] = []
        self._arrivals: list[list[float]] = [[] for _ in asks]
        self._outputs: dict[str, CompletionOutput] = {}
        self.open: set[str] = set()
        self._at_end: list[int] | None = None  # tokens of each when the awaited one was answered

    def submit_due(self) -> None:
        """Submit every ask whose turn has come, in order."""
        while len(self._ids) < len(self._asks):
            ask = self._asks[len(self._ids)]
            if any(len(times) < ask.after for times in self._arrivals[: len(self._ids)]):
                return
            params = SamplingParams(temperature=ask.temperature, max_tokens=ask.output, ignore_eos=True)
            request = Request(ask.prompt, params)
            self._submitted.append(self._clock())
            self._core.add(request)
            self._places[request.request_id] = len(self._ids)
            self._ids.append(request.request_id)
            self.open.add(request.request_id)

    def take_in(self, updates: Sequence[Update], until: int | None) -> None:
        """Note when what came, and what went wrong."""
        now, ended = self._clock(), False
        for update in updates:
            if update.request_id not in self.open:
                continue
            self._arrivals[self._places[update.request_id]] += [now] * len(update.token_ids)
            self._untold += len(update.token_ids)
            if update.finished is not None:
                if self._places[update.request_id] == until:
                    ended = True
                self._outputs[update.request_id] = update.finished
                self.open.discard(update.request_id)
                _check(update.finished)
        if ended:
            self._at_end = [len(arrivals) for arrivals in self._arrivals]
        if now - self._told >= RATE_SECONDS:
            if self._untold:
                self._on_rate(self._untold / (now - self._told))
            self._told, self._untold = now, 0

    def done(self, until: int | None) -> bool:
        """Whether everything that is waited for was answered."""
        if until is not None:
            return self._at_end is not None and all(
                len(arrivals) > before or request_id not in self.open
                for request_id, arrivals, before in zip(self._ids, self._arrivals, self._at_end, strict=False)
            )
        return len(self._outputs) == len(self._asks)

    def replies(self) -> list[Reply]:
        """What was seen; a reply that was cut short ends with its last token."""
        return [
            Reply(
                submitted,
                arrivals[-1] if arrivals else submitted,
                len(arrivals),
                tuple(arrivals),
                self._outputs[request_id].metrics.cached_tokens if request_id in self._outputs else None,
            )
            for request_id, submitted, arrivals in zip(
                self._ids, self._submitted, self._arrivals, strict=True
            )
        ]


def _check(output: CompletionOutput) -> None:
    if output.finish_reason is FinishReason.ERROR:
        text = output.error or "a request failed and did not say why"
        raise OutOfMemory(text) if "out of memory" in text else NanochatError(text)
