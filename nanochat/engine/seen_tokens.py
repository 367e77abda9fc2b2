"""Which tokens a sequence has had and how often, and what its penalties make of that: kept, and extended by what is new.

Counted anew, a context of 32,000 tokens costs milliseconds a step for each reply, in which nothing else goes on.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from nanochat.engine.sampling_params import SamplingParams

# A logit over a smaller one might be infinite, and its row be taken for a broken one, or be too large for `min_tokens`.
_LEAST_PENALTY = 1e-20


@dataclass(frozen=True, slots=True)
class Bends:
    """Tokens, each named once, and the number by which the logit of each is bent."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("f"))


class SeenTokens:
    """Of one sequence, whose tokens are only ever appended and whose parameters stay.

    Attributes:
        repeated: what was in the prompt or the reply, and what its logit is divided or multiplied by.
        lowered: what was in the reply, and what is taken from its logit.
    """

    __slots__ = ("_counts", "_places", "_read", "_seen", "lowered", "repeated")

    def __init__(self) -> None:
        self.repeated, self.lowered = Bends(), Bends()
        self._read = 0  # tokens that were counted
        self._seen: set[int] = set()
        self._places: dict[int, int] = {}  # where `lowered` has a token
        self._counts: list[int] = []

    def extend(self, tokens: list[int], prompt: int, params: SamplingParams) -> None:
        """Count what is new in `tokens`, the first `prompt` of which are no part of the reply."""
        begin, self._read = self._read, len(tokens)
        penalty = params.repetition_penalty
        if penalty is not None and penalty != 1.0:
            fresh = set(tokens[begin:]) - self._seen
            self._seen |= fresh
            self.repeated.tokens.extend(fresh)
            self.repeated.numbers.extend([max(penalty, _LEAST_PENALTY)] * len(fresh))
        if params.presence_penalty or params.frequency_penalty:
            for token in tokens[max(begin, prompt) :]:
                self._count(token, params)

    def _count(self, token: int, params: SamplingParams) -> None:
        place = self._places.setdefault(token, len(self._counts))
        if place == len(self._counts):
            self._counts.append(0)
            self.lowered.tokens.append(token)
            self.lowered.numbers.append(0.0)
        self._counts[place] += 1
        by = params.presence_penalty + params.frequency_penalty * self._counts[place]
        self.lowered.numbers[place] = by
