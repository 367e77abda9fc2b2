"""A case: one thing that is measured, on any engine that can be measured. One case becomes one row for each engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nanochat.benchmarks.cost import Ceilings, Floor, ModelCost

TOP_ID = 10_000  # prompts are drawn from the ids 0 to this, as in Nano-vLLM's bench.py
TEMPERATURE = 0.6

Unit = Literal["tok/s", "ms", "s"]

Weights = float | Literal["as planned", "unknown"]
"""What an engine keeps a weight in: bytes of one on average, what the plan says, or what nobody can say from here."""


class Stopped(Exception):
    """The user stopped the run; what was being measured is dropped."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt of ids, and how many tokens to generate, whatever they are.

    It is submitted once every ask before it in the list has given `after` tokens.
    """

    prompt: tuple[int, ...]
    output: int
    temperature: float = TEMPERATURE
    after: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """When an ask was answered, in seconds on the engine's clock. `arrivals` has one time for each token.

    An engine that does not stream knows only `finished`; its arrivals are empty. One that knows no more than the time
    from its first token to its last gives that as `decoding`.
    """

    submitted: float
    finished: float
    tokens: int
    arrivals: tuple[float, ...] = ()
    cached: int | None = None
    decoding: float | None = None

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last, of an engine that streams."""
        return self.decoding if self.decoding is not None else self.arrivals[-1] - self.arrivals[0]

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between one token and the next."""
        return tuple(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))

    @property
    def seconds(self) -> float:
        """From submit to the end."""
        return self.finished - self.submitted


class Target(Protocol):
    """An engine under measurement."""

    name: str
    streams: bool
    """Whether it tells when each token came."""
    about: str
    """What else a reader should know of it; empty if nothing."""
    weights: Weights
    """What its ceiling is counted with; it has none where that is unknown."""

    def run(self, asks: Sequence[Ask], *, until: int | None = None) -> list[Reply]:
        """Answer all asks, running together.

        With `until`, end when that one is answered and each of the others has given a token since.

        Raises:
            Stopped: the user stopped the run.
            OutOfMemory: a request failed for want of memory.
        """
        ...

    def forget(self) -> None:
        """Drop every cached prefix, so that equal prompts are computed again."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: the value in the case's unit, and what else was seen.

    `tokens` and `seconds` are of the whole measured work; `details` holds lists in milliseconds, by name.
    """

    value: float
    tokens: int
    seconds: float
    details: dict[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])


@dataclass(frozen=True, slots=True)
class Limit:
    """The best possible value in the case's unit, and the work and the time that it stands for."""

    value: float
    floor: Floor


class Case(Protocol):
    """What is measured, and what would be possible."""

    @property
    def test(self) -> str:
        """The row's name."""
        ...

    @property
    def unit(self) -> Unit:
        """What values are in; tok/s are better when higher, times when lower."""
        ...

    @property
    def needs_stream(self) -> bool:
        """Whether it can only be measured on an engine that tells when each token came."""
        ...

    @property
    def place(self) -> dict[str, float]:
        """Where it stands among cases like it: what a plot has on its axis."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        ...

    @property
    def sequences(self) -> int:
        """Sequences that run together at most."""
        ...

    def warm_up(self, target: Target) -> None:
        """Do the work once, unmeasured."""
        ...

    def measure(self, target: Target, repeat: int) -> Sample:
        """Do the work once. Prompts differ from repeat to repeat."""
        ...

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit | None:
        """What the device allows; None where nothing can be said."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that one run over several asks showed, in the terms that cases report."""

    replies: tuple[Reply, ...]

    @property
    def seconds(self) -> float:
        """From the first submit to the last token."""
        return max(r.finished for r in self.replies) - min(r.submitted for r in self.replies)

    @property
    def tokens(self) -> int:
        """Generated, of all replies."""
        return sum(reply.tokens for reply in self.replies)

    def details(self) -> dict[str, tuple[float, ...]]:
        """Times to the first token and gaps between tokens, in milliseconds, where the engine tells."""
        first = tuple(1e3 * (r.arrivals[0] - r.submitted) for r in self.replies if r.arrivals)
        gaps = tuple(1e3 * gap for reply in self.replies for gap in reply.gaps)
        return {name: values for name, values in (("ttft", first), ("itl", gaps)) if values}


def draw_prompt(generator: random.Random, length: int) -> tuple[int, ...]:
    """So many random token ids."""
    return tuple(generator.randint(0, TOP_ID) for _ in range(length))


def seconds_of(target: Target, ask: Ask) -> float:
    """The time of one request alone."""
    return target.run([ask])[0].seconds
