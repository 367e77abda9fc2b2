"""One axis of a chart: which values it spans, where a value lies on it, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`; with `logarithmic`, equal ratios are equal distances."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, logarithmic: bool = False) -> Axis:
        """An axis that shows all values with some room; a linear one begins at zero."""
        found = [*values]
        if logarithmic:
            return cls(min(found) / 1.5, max(found) * 1.5, True)
        low, high = min([0.0, *found]), max(found)
        return cls(low, high * 1.05 if high > low else low + 1.0)

    def share(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """At most so many round values: multiples of 1, 2 or 5; on a logarithmic axis powers of ten, or 1, 2, 5 of each."""
        if self.logarithmic:
            fine = self._decades((1.0, 2.0, 5.0))
            if len(fine) <= most:
                return fine
            powers = self._decades((1.0,))
            return _thinned(powers, most) if len(powers) > 1 else _thinned(fine, most)
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in _STEPS if unit * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step), math.floor(self.high / step * (1 + 1e-9))
        return [step * place for place in range(first, last + 1)]

    def _decades(self, factors: Sequence[float]) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        return [value for value in values if self.low <= value <= self.high]


def _thinned(values: list[float], most: int) -> list[float]:
    return values[:: -(-len(values) // max(most, 1))]


def short(value: float) -> str:
    """A tick's value in few characters: 0.05, 2, 150, 12k, 3M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}"
