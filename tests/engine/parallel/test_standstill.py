"""What tells a rank that hangs from one that is slow."""

from __future__ import annotations

import os

import pytest

from nanochat.engine.host import Progress
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.standstill import POLL, Standstill

STILL, UNMOVED = 10, 40


class Rank:
    """A rank, and the looks at it. `computes`: seconds of a processor's time between two looks."""

    def __init__(self) -> None:
        descriptor = allocate(1)
        self.pulse = SharedMemory(descriptor, 1).pulse(0)
        os.close(descriptor)
        self.standstill = Standstill(self.pulse, STILL, UNMOVED)
        self._seconds = 0.0

    def looks(self, number: int, computes: float = 0.0, *, busy: bool = False, waits: bool = False):
        """(what is said at last, how many looks it took)."""
        for look in range(1, number + 1):
            self._seconds += computes
            found = self.standstill.look(lambda: Progress(self._seconds, busy, waits))
            if found is not None:
                return found, look
        return None


@pytest.fixture
def rank() -> Rank:
    return Rank()


@pytest.mark.parametrize("work", [{"computes": POLL, "busy": True}, {"computes": 4 * POLL, "busy": True}])
def test_a_rank_that_computes_for_ever_is_lost(rank: Rank, work) -> None:
    assert rank.looks(30, **work) == ("came no further for 2 s", STILL + 1)


def test_a_rank_that_sleeps_for_ever_is_lost(rank: Rank) -> None:
    assert rank.looks(30, computes=1e-4) == ("did nothing for 2 s", STILL + 1)


def test_one_that_sleeps_and_computes_by_turns_is_lost(rank: Rank) -> None:
    assert rank.looks(30, computes=0.05) == ("came no further for 2 s", STILL + 1)


def test_every_piece_of_work_begins_the_time_anew(rank: Rank) -> None:
    for _ in range(10):
        assert rank.looks(STILL, POLL, busy=True) is None
        rank.pulse.advance()
    assert rank.looks(STILL + 1, POLL, busy=True) is not None


def test_no_time_counts_in_which_it_got_no_processor(rank: Rank) -> None:
    """A busy machine gives a rank a twentieth of a processor: its pieces take twenty times as long."""
    piece = int(0.45 * STILL * 20)
    limited = Standstill(rank.pulse, STILL, 10 * piece)
    rank.standstill = limited
    assert rank.looks(piece, POLL / 20, busy=True) is None
    rank.pulse.advance()
    assert rank.looks(10 * piece, POLL / 20, busy=True) is not None  # one that hangs is found there too


def test_a_disk_may_take_longer_but_not_for_ever(rank: Rank) -> None:
    """Be it for memory that was swapped out."""
    assert rank.looks(UNMOVED, POLL, busy=True, waits=True) is None
    assert rank.looks(2, POLL, busy=True, waits=True) is not None


def test_a_call_that_was_given_time_by_name_takes_it(rank: Rank) -> None:
    rank.pulse.allowed = 3
    given = int(3 / POLL)
    assert rank.looks(STILL + given, POLL, busy=True) is None
    assert rank.looks(3, POLL, busy=True) is not None
    rank.pulse.allowed = 0
    assert rank.looks(STILL + 1, POLL, busy=True) is not None  # and not the next one


def test_a_long_call_may_end_while_the_rank_is_looked_at(rank: Rank) -> None:
    """What it did was 100 s long and allowed; what it does now is not."""
    rank.pulse.allowed = 100
    assert rank.looks(3 * STILL) is None

    def ends() -> Progress:
        rank.pulse.allowed = 0
        rank.pulse.advance()
        return Progress(0.0, busy=False, waits=False)

    assert rank.standstill.look(ends) is None
    assert rank.looks(STILL) is None


def test_who_waits_for_other_ranks_has_time(rank: Rank) -> None:
    with rank.pulse.collective():
        assert rank.looks(100) is None
    with rank.pulse.news():
        assert rank.looks(100) is None
    assert rank.looks(STILL + 2) is not None


def test_after_a_sleep_of_the_whole_machine_one_look_is_one_look(rank: Rank) -> None:
    """The program was stopped, its workers were not: a minute's computing at once is no minute without headway."""
    rank.looks(2, POLL, busy=True)
    assert rank.looks(1, computes=60.0, busy=True) is None
    assert rank.looks(STILL - 3, POLL, busy=True) is None


def test_a_process_that_is_gone_does_not_hang(rank: Rank) -> None:
    for _ in range(100):
        assert rank.standstill.look(lambda: None) is None
