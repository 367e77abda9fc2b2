"""When a rank counts as lost: each rule by itself. `test_standstill.py` has the one that tells slow from hanging."""

from __future__ import annotations

import os

import pytest

from nanochat.engine.host import Progress
from nanochat.engine.parallel import watch
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.own_work import OwnWork
from nanochat.engine.parallel.watch import Bounds, Deadlock, Silence, Stage, Standing, Watch

RANKS = 3
SOON = Bounds(silence=4, still=5, unmoved=20, stall=4, patience=1.0)


@pytest.fixture
def memory():
    descriptor = allocate(RANKS)
    yield SharedMemory(descriptor, RANKS)
    os.close(descriptor)


@pytest.fixture
def workers() -> list[Standing]:
    return [Standing(10 + rank, Stage.LOADING) for rank in range(1, RANKS)]


def looks(rule, number: int = 20, between=lambda: None):
    """What a rule finds in so many looks, and in which."""
    for look in range(number):
        found = rule.look()
        if found is not None:
            return found, look
        between()
    return None


def test_a_worker_whose_heart_stands_still_is_lost(memory, workers) -> None:
    found = looks(Silence(memory, workers, SOON), between=lambda: memory.pulse(1).beat(1))
    assert found == ((2, "gave no sign of life for 1 s"), 4)


def test_a_worker_that_starts_need_not_beat(memory, workers) -> None:
    for worker in workers:
        worker.stage = Stage.STARTING
    assert looks(Silence(memory, workers, SOON)) is None


class Looks:
    """A watch that looks whenever it is asked, at ranks that compute."""

    def __init__(self, memory, workers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own = OwnWork(memory.pulse(0))
        self.standings = [Standing(10, Stage.LOADING), *workers]
        self.memory, self.seconds = memory, 0.0
        monkeypatch.setattr(watch, "progress", self.effort)
        monkeypatch.setattr(watch, "thread_progress", self.effort)
        monkeypatch.setattr(watch.time, "monotonic", self.clock)
        self._watch = Watch(memory, self.standings, self.own, SOON)

    def effort(self, _: int) -> Progress:
        return Progress(self.seconds, busy=True)

    def clock(self) -> float:
        return self.seconds

    def look(self) -> watch.Lost | None:
        self.seconds += 0.2
        for rank in range(1, RANKS):
            self.memory.pulse(rank).beat(7)
        return self._watch.look(True)


@pytest.fixture
def every(memory, workers, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(memory, workers, monkeypatch)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Stage.STARTING, "starting"),
        (Stage.LOADING, "loading its weights"),
        (Stage.GETTING_READY, "getting ready"),
        (Stage.READY, "in a step"),
    ],
)
def test_the_rank_that_comes_no_further_is_named_and_where_it_stands(every, stage, words) -> None:
    every.standings[2].stage = stage
    found = looks(every, between=every.memory.pulse(1).advance)
    assert found == ((2, f"came no further for 1 s while {words}"), 5)


def test_a_rank_that_waits_for_another_is_not_to_blame(every) -> None:
    with every.own.going_on(), every.memory.pulse(0).news(), every.memory.pulse(1).collective():
        assert looks(every)[0][0] == 2
        every.memory.pulse(2).advance()
        assert looks(every, between=every.memory.pulse(2).advance) is None


def test_rank_0_is_watched_while_it_works_and_only_then(every) -> None:
    with every.memory.pulse(1).news(), every.memory.pulse(2).news():
        assert looks(every) is None
        with every.own.going_on():
            assert looks(every)[0] == (0, "came no further for 1 s while loading its weights")
        assert looks(every) is None


def test_what_rank_0_imports_while_it_loads_is_headway(every, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = iter(range(1000))

    def one_more() -> None:
        monkeypatch.setitem(watch.sys.modules, f"none_{next(modules)}", watch)

    with every.memory.pulse(1).news(), every.memory.pulse(2).news(), every.own.going_on():
        assert looks(every, between=one_more) is None
        every.standings[0].stage = Stage.READY
        assert looks(every, between=one_more) is not None


def test_where_all_wait_for_each_other_the_one_that_is_behind_is_lost(memory) -> None:
    deadlock = Deadlock(memory, RANKS, SOON)
    memory.pulse(1).leave()  # rank 1 is one collective further than rank 2
    for rank in range(RANKS):
        memory.pulse(rank).enter()
    assert looks(type("", (), {"look": lambda _: deadlock.look(False)})()) is None  # between steps
    found = looks(type("", (), {"look": lambda _: deadlock.look(True)})())
    assert found == ((2, "did not come to a collective for 1 s"), 3)


def test_a_long_call_may_end_while_all_ranks_are_looked_at(memory) -> None:
    """What it was allowed is read before how far it is: afterwards it is what its next call is allowed."""
    deadlock = Deadlock(memory, RANKS, SOON)
    for rank in range(RANKS):
        memory.pulse(rank).enter()
    memory.pulse(2).allowed = 100
    assert [deadlock.look(True) for _ in range(20)] == [None] * 20

    class Ends:
        waiting = True

        @property
        def allowed(self) -> int:
            return memory.pulse(2).allowed

        @property
        def far(self) -> tuple[int, ...]:
            before = memory.pulse(2).far
            memory.pulse(2).allowed = 0
            return before

    deadlock._pulses[2] = Ends()
    assert deadlock.look(True) is None


def test_where_one_rank_works_or_a_device_is_known_to_take_long_there_is_no_deadlock(memory) -> None:
    deadlock = Deadlock(memory, RANKS, SOON)
    for rank in range(RANKS - 1):
        memory.pulse(rank).enter()
    for _ in range(20):
        assert deadlock.look(True) is None
    memory.pulse(2).enter()
    assert [deadlock.look(True) for _ in range(20)] == [None] * 20  # it took 20 looks before
    assert deadlock.look(True) is None
    assert any(deadlock.look(True) for _ in range(10))
