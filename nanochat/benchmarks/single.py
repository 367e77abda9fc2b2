"""Cases of one request at a time: prefill, decode, and the time to the first token."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from nanochat.benchmarks.case import Ask, Limit, Sample, Target, Unit, draw_prompt, seconds_of
from nanochat.benchmarks.cost import Ceilings, ModelCost, floor


@dataclass(frozen=True, slots=True)
class Prefill:
    """A fresh prompt: tok/s of the prompt, from submit to the first token (llama-bench's `pp`)."""

    prompt: int
    unit: Unit = "tok/s"
    needs_stream: bool = False
    sequences: int = 1

    @property
    def test(self) -> str:
        """As llama-bench names it."""
        return f"pp{self.prompt}"

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return self.prompt + 1

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        prompt = draw_prompt(random.Random(f"{self.test} {repeat}"), self.prompt)
        target.forget()
        seconds = seconds_of(target, Ask(prompt, 1))
        return Sample(self.prompt / seconds, self.prompt, seconds, {"ttft": (seconds * 1e3,)})

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        least = floor([(cost.prefill(self.prompt), 1)], ceilings)
        return Limit(self.prompt / least.seconds, least)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The time from submit to the first token of a prompt of which `cached` tokens are in the prefix cache.

    Where there are such, the same prompt is also computed anew each time, just before: its times are the detail "anew".
    """

    test: str
    new: int
    cached: int = 0
    unit: Unit = "ms"
    needs_stream: bool = False
    sequences: int = 1

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return self.cached + self.new + 1

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        prompt = draw_prompt(random.Random(f"{self.test} {repeat}"), self.cached + self.new)
        target.forget()
        details: dict[str, tuple[float, ...]] = {}
        if self.cached:
            details["anew"] = (1e3 * seconds_of(target, Ask(prompt, 1)),)
            target.forget()
            target.run([Ask(prompt[: self.cached], 1)])
        seconds = seconds_of(target, Ask(prompt, 1))
        return Sample(seconds * 1e3, self.new, seconds, details)

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        least = floor([(cost.prefill(self.new, self.cached), 1)], ceilings)
        return Limit(least.seconds * 1e3, least)


@dataclass(frozen=True, slots=True)
class Decode:
    """Tokens a second after the first, with `depth` tokens before them (llama-bench's `tg`).

    By the difference of two whole requests, (T(n + 1) - T(1)) / n, which any engine can be asked for; with
    `by_arrival` by the times at which the tokens came, where the engine tells them.
    """

    tokens: int
    depth: int = 0
    name: str = ""
    by_arrival: bool = True
    unit: Unit = "tok/s"
    needs_stream: bool = False
    sequences: int = 1

    @property
    def test(self) -> str:
        """As llama-bench names it, unless it has a name."""
        return self.name or f"tg{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return max(self.depth, 1) + self.tokens + 1

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        prompt = draw_prompt(random.Random(f"{self.test} {repeat}"), max(self.depth, 1))
        target.forget()
        ask = Ask(prompt, self.tokens + 1)
        if self.by_arrival and target.streams:
            reply = target.run([ask])[0]
            seconds, tokens = reply.decode_seconds, reply.tokens - 1
            gaps = tuple(1e3 * gap for gap in reply.gaps)
            return Sample(tokens / seconds, tokens, seconds, {"itl": gaps} if gaps else {})
        first = seconds_of(target, replace(ask, output=1))
        target.forget()
        seconds = seconds_of(target, ask) - first
        return Sample(self.tokens / seconds, self.tokens, seconds, {"ttft": (first * 1e3,)})

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        depth = max(self.depth, 1)
        steps = [(cost.decode([depth + step]), 1) for step in range(1, self.tokens + 1)]
        least = floor(steps, ceilings)
        return Limit(self.tokens / least.seconds, least)
