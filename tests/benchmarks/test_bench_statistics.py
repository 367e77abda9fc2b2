"""Quartiles and the rank-sum test: by hand, and how often they err."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.benchmarks.statistics import quantile, rank_sum_p, smallest_p, summarise

TRIALS = 600


def test_quartiles_lie_between_the_order_statistics() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.25) == 1.75
    found = summarise([5.0, 1.0, 9.0])
    assert (found.median, found.low, found.high, found.count) == (5.0, 3.0, 7.0, 3)


def test_the_exact_p_of_separate_samples_is_two_of_all_ways() -> None:
    assert rank_sum_p([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]) == 2 / 70
    assert smallest_p(4, 4) == 2 / 70
    assert smallest_p(3, 3) == 0.1  # three and three can never tell


def test_equal_samples_differ_by_nothing() -> None:
    assert rank_sum_p([2.0] * 5, [2.0] * 5) == 1.0
    assert rank_sum_p([], [1.0]) == 1.0


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5), st.lists(st.integers(0, 6), min_size=1, max_size=5)
)
def test_the_exact_p_counts_every_way_to_deal_out_the_ranks(first: list[int], second: list[int]) -> None:
    pooled = [*first, *second]
    ranks = [(sum(o < v for o in pooled) + sum(o <= v for o in pooled) + 1) / 2 for v in pooled]
    middle = sum(ranks) * len(first) / len(pooled)
    distance = abs(sum(ranks[: len(first)]) - middle)
    sums = [sum(chosen) for chosen in combinations(ranks, len(first))]
    expected = sum(abs(total - middle) >= distance - 1e-9 for total in sums) / len(sums)
    assert rank_sum_p([*map(float, first)], [*map(float, second)]) == pytest.approx(expected)


@pytest.mark.parametrize("count", [4, 5, 7, 10, 40])
@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_two_samples_of_one_distribution_are_within_noise_nineteen_times_of_twenty(
    count: int, shape: str
) -> None:
    generator = random.Random(count)

    def sample() -> list[float]:
        if shape == "normal":
            return [generator.gauss(100, 5) for _ in range(count)]
        return [100 + generator.expovariate(0.2) for _ in range(count)]

    within = sum(rank_sum_p(sample(), sample()) >= 0.05 for _ in range(TRIALS))
    assert within / TRIALS >= 0.95 - 0.018  # two standard deviations of 600 trials at exactly 0.95


@pytest.mark.parametrize("count", [4, 5, 10])
def test_ten_percent_apart_is_told(count: int) -> None:
    generator = random.Random(1)
    found = sum(
        rank_sum_p(
            [generator.gauss(100, 2) for _ in range(count)], [generator.gauss(110, 2) for _ in range(count)]
        )
        < 0.05
        for _ in range(200)
    )
    assert found / 200 >= 0.95
