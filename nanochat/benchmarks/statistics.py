"""Summaries of samples, and whether two samples differ by more than chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
"""How often two samples of one distribution may be called different."""

_LARGEST_EXACT = 60  # samples in all; beyond, the normal approximation is as good


@dataclass(frozen=True, slots=True)
class Summary:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    count: int


def quantile(samples: Sequence[float], fraction: float) -> float:
    """Linear between the order statistics, as numpy's default (Hyndman and Fan's type 7)."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(samples: Sequence[float]) -> Summary:
    """Median and quartiles of samples; nan of none."""
    return Summary(quantile(samples, 0.5), quantile(samples, 0.25), quantile(samples, 0.75), len(samples))


def rank_sum_p(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of Wilcoxon's rank-sum test (Mann and Whitney's U), ties sharing their mean rank.

    Exact up to 60 samples in all: the share of all ways to deal out the same ranks that are at least as far from the
    middle. It assumes nothing of the distribution, and one outlier moves it little.
    """
    if not first or not second:
        return 1.0
    ranks = _doubled_ranks([*first, *second])
    observed = sum(ranks[: len(first)])
    total, taken = sum(ranks), len(first)
    distance = abs(observed * len(ranks) - total * taken)  # from the mean, times the number of samples
    if len(ranks) > _LARGEST_EXACT:
        return _normal_p(ranks, taken, distance)
    ways = [Counter[int]() for _ in range(taken + 1)]  # by how many were dealt: doubled rank sum -> ways
    ways[0][0] = 1
    for rank in ranks:
        for dealt in range(taken, 0, -1):
            for before, count in ways[dealt - 1].items():
                ways[dealt][before + rank] += count
    far = sum(
        count for value, count in ways[taken].items() if abs(value * len(ranks) - total * taken) >= distance
    )
    return far / math.comb(len(ranks), taken)


def smallest_p(first: int, second: int) -> float:
    """The least p-value that so many samples can give: all of one above all of the other."""
    if not first or not second:
        return 1.0
    return min(2 / math.comb(first + second, first), 1.0)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Each value's rank from 1, times two, so that ties' mean ranks are whole."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    count = Counter(ordered)
    for place, value in enumerate(ordered, 1):
        first.setdefault(value, place)
    return [2 * first[value] + count[value] - 1 for value in values]


def _normal_p(ranks: Sequence[int], taken: int, distance: int) -> float:
    number = len(ranks)
    mean = sum(ranks) / number
    spread = sum((rank - mean) ** 2 for rank in ranks) / (number - 1)  # of doubled ranks, ties included
    deviation = math.sqrt(spread * taken * (number - taken) / number)
    if deviation == 0:
        return 1.0
    return math.erfc(distance / number / deviation / math.sqrt(2))
