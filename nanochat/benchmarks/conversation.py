"""Cases of a chat: the time to the first token of each turn, and what a long prompt does to the replies beside it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from nanochat.benchmarks.case import Ask, Limit, Reply, Sample, Target, Unit, draw_prompt
from nanochat.benchmarks.cost import Ceilings, ModelCost, floor


@dataclass(frozen=True, slots=True)
class Turn:
    """The first token of turn `number` of a chat in which each turn adds `new` tokens and `answer` are answered."""

    number: int
    new: int
    answer: int
    cache: bool
    unit: Unit = "ms"
    needs_stream: bool = False
    sequences: int = 1

    @property
    def test(self) -> str:
        """Which turn, and whether its beginning may come from the prefix cache."""
        return f"chat turn {self.number}, {'cached' if self.cache else 'no cache'}"

    @property
    def before(self) -> int:
        """Tokens of all turns before this one, answers included."""
        return (self.number - 1) * (self.new + self.answer)

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {"turn": self.number, "cache": self.cache}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return self.before + self.new + self.answer

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        generator = random.Random(f"{self.test} {repeat}")
        prompt = draw_prompt(generator, self.before + self.new)
        target.forget()
        if self.cache and self.before:
            target.run([Ask(prompt[: self.before], 1)])
        reply = target.run([Ask(prompt, 1)])[0]
        return Sample(reply.seconds * 1e3, self.new, reply.seconds)

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        work = cost.prefill(self.new, self.before) if self.cache else cost.prefill(self.new + self.before)
        least = floor([(work, 1)], ceilings)
        return Limit(least.seconds * 1e3, least)


@dataclass(frozen=True, slots=True)
class Interference:
    """The worst gap between tokens of running replies while a long prompt is read beside them.

    The long prompt is submitted when every reply has given `ahead` tokens; the gaps before that are kept as "alone".
    """

    replies: int
    prompt: int
    context: int = 128
    ahead: int = 64
    unit: Unit = "ms"
    needs_stream: bool = True

    @property
    def test(self) -> str:
        """What is read beside what."""
        many = "a reply" if self.replies == 1 else f"{self.replies} replies"
        return f"worst gap of {many} beside pp{self.prompt}"

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return max(self.prompt + 1, self.context + self._output)

    @property
    def sequences(self) -> int:
        """See `Case`."""
        return self.replies + 1

    @property
    def _output(self) -> int:
        """Enough that no reply ends before the long prompt is read: a chunk of it comes with every token at worst."""
        return self.ahead + max(self.prompt // 8, 64)

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        generator = random.Random(f"{self.test} {repeat}")
        asks = [Ask(draw_prompt(generator, self.context), self._output) for _ in range(self.replies)]
        asks.append(Ask(draw_prompt(generator, self.prompt), 1, after=self.ahead))
        target.forget()
        *running, long = target.run(asks, until=self.replies)
        beside = tuple(1e3 * gap for reply in running for gap in _gaps(reply, long.submitted, long.finished))
        alone = tuple(1e3 * gap for reply in running for gap in _gaps(reply, -inf, long.submitted))
        details = {"gap beside": beside, "gap alone": alone, "ttft": (long.seconds * 1e3,)}
        return Sample(max(beside, default=0.0), sum(r.tokens for r in running), long.seconds, details)

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """A step of the running replies alone: nothing can be nearer together than that."""
        work = cost.decode([self.context + self.ahead] * self.replies)
        least = floor([(work, 1)], ceilings)
        return Limit(least.seconds * 1e3, least)


def _gaps(reply: Reply, start: float, end: float) -> list[float]:
    """Gaps that lie at least partly between `start` and `end`."""
    return [b - a for a, b in pairwise(reply.arrivals) if b > start and a < end]
