"""What holds of sums in one shot and of wide ones alike, in the interpreter."""

from __future__ import annotations

from itertools import pairwise

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from rank_ends import ROWS, OneShotRanks, WideRanks, numbers

BOTH = pytest.mark.parametrize("kind", [OneShotRanks, WideRanks], ids=["one shot", "wide"])


@BOTH
def test_one_row_may_be_in_many_more_rounds_than_another(kind: type[OneShotRanks | WideRanks]) -> None:
    group = kind(2)
    for seed in range(5):
        deltas = numbers(seed, 2, 1, 64, torch.float32)
        assert torch.equal(group.sum(deltas)[1], deltas[0] + deltas[1])
    deltas = numbers(9, 2, 5, 64, torch.float32)
    assert torch.equal(group.sum(deltas)[0], deltas[0] + deltas[1])


@pytest.mark.parametrize("way", ["one shot", "wide", "without flags"])
def test_a_rank_that_is_a_round_ahead_overwrites_nothing_that_is_still_needed(way: str) -> None:
    """Neither a row nor its flag."""
    group = OneShotRanks(2) if way == "one shot" else WideRanks(2)
    if isinstance(group, WideRanks):
        for end in group.ends:
            end.flagless = ROWS if way == "without flags" else 0
    rounds = [numbers(seed, 2, 2, 64, torch.float32) for seed in range(4)]
    ahead, behind = group.ends
    behind._launch(rounds[0][1], None, None, 0.0, receive=False)
    for now, then in pairwise(rounds):
        ahead._launch(now[0], None, None, 0.0)
        ahead._launch(then[0], None, None, 0.0, receive=False)
        assert torch.equal(behind._launch(now[1], None, None, 0.0, send=False)[0], now[0] + now[1])
        behind._launch(then[1], None, None, 0.0, receive=False)
    assert not behind.failed.item()


@BOTH
def test_rounds_go_on_when_their_count_overflows(kind: type[OneShotRanks | WideRanks]) -> None:
    group = kind(2)
    for end in group.ends:
        end._rounds.fill_(-3)
    for seed in range(5):  # the rounds -2, -1, 2, 3, 4
        deltas = numbers(seed, 2, 2, 64, torch.float32)
        assert torch.equal(group.sum(deltas)[0], deltas[0] + deltas[1])
        assert not group.ends[0].failed.item()
    assert group.ends[0]._rounds[0] == 4
