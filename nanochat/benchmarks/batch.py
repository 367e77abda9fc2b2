"""Cases of many requests together: tokens a second in all and for each."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat.benchmarks.case import Answer, Ask, Limit, Sample, Target, Unit, draw_prompt
from nanochat.benchmarks.cost import Ceilings, ModelCost, floor


@dataclass(frozen=True, slots=True)
class Batch:
    """Equal requests, submitted at once: output tok/s over the whole time, prefill included."""

    batch: int
    prompt: int
    output: int
    unit: Unit = "tok/s"
    needs_stream: bool = False

    @property
    def test(self) -> str:
        """Requests x (prompt + output)."""
        return f"batch {self.batch} x ({self.prompt} + {self.output})"

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {"batch": self.batch}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return self.prompt + self.output

    @property
    def sequences(self) -> int:
        """See `Case`."""
        return self.batch

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        self.measure(target, -1)

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        generator = random.Random(f"{self.test} {repeat}")
        asks = [Ask(draw_prompt(generator, self.prompt), self.output) for _ in range(self.batch)]
        target.forget()
        return throughput(target, asks)

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        least = floor(cost.generation([(self.prompt, self.output)] * self.batch), ceilings)
        return Limit(self.batch * self.output / least.seconds, least)


@dataclass(frozen=True, slots=True)
class Requests:
    """Workload B, the benchmark of Nano-vLLM's bench.py: requests of random lengths, all submitted at once.

    Seed 0 is measured, every time the same; seed 1 warms up. The order of the draws is bench.py's: all
    prompts (a length, then its ids), then all output lengths.
    """

    count: int = 256
    least: int = 100
    most: int = 1024
    unit: Unit = "tok/s"
    needs_stream: bool = False

    @property
    def test(self) -> str:
        """`B` as published, or with the sizes that differ."""
        usual = (self.count, self.least, self.most) == (256, 100, 1024)
        return "B" if usual else f"B {self.count} x ({self.least}-{self.most} + {self.least}-{self.most})"

    @property
    def place(self) -> dict[str, float]:
        """See `Case`."""
        return {}

    @property
    def longest(self) -> int:
        """See `Case`."""
        return 2 * self.most

    @property
    def sequences(self) -> int:
        """See `Case`."""
        return self.count

    def asks(self, seed: int) -> list[Ask]:
        """The requests that a seed stands for."""
        generator = random.Random(seed)
        prompts = [
            draw_prompt(generator, generator.randint(self.least, self.most)) for _ in range(self.count)
        ]
        return [Ask(prompt, generator.randint(self.least, self.most)) for prompt in prompts]

    def warm_up(self, target: Target) -> None:
        """See `Case`."""
        target.forget()
        target.run(self.asks(1))

    def measure(self, target: Target, repeat: int) -> Sample:
        """See `Case`."""
        target.forget()
        return throughput(target, self.asks(0))

    def limit(self, cost: ModelCost, ceilings: Ceilings) -> Limit:
        """See `Case`."""
        sizes = [(len(ask.prompt), ask.output) for ask in self.asks(0)]
        least = floor(cost.generation(sizes), ceilings)
        return Limit(sum(output for _, output in sizes) / least.seconds, least)


def throughput(target: Target, asks: list[Ask]) -> Sample:
    """Output tok/s of all asks together."""
    answer = Answer(tuple(target.run(asks)))
    details = answer.details()
    details["tok/s each"] = tuple(reply.tokens / reply.seconds for reply in answer.replies)
    return Sample(answer.tokens / answer.seconds, answer.tokens, answer.seconds, details)
