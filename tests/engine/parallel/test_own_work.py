"""Rank 0's work is called off, and nothing but it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from nanochat.engine.parallel import own_work
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.own_work import CalledOff, OwnWork
from nanochat.kernels.headway import made


@pytest.fixture
def memory():
    descriptor = allocate(1)
    yield SharedMemory(descriptor, 1)
    os.close(descriptor)


def test_a_thread_that_loops_for_ever_is_called_off(memory) -> None:
    own = OwnWork(memory.pulse(0))
    with pytest.raises(CalledOff), own.going_on():
        threading.Timer(0.1, own.call_off).start()
        while True:
            pass
    assert own.thread is None


def test_what_is_called_off_too_late_ends_nothing_else(memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that has not arrived when the work ends is taken back; afterwards none is thrown."""
    thrown: list[tuple[int, object]] = []
    whole = own_work._throw

    def throw(ident: int, kind: type[BaseException]) -> None:
        thrown.append((ident, kind))
        if kind is not CalledOff:  # which would arrive at once
            whole(ident, kind)

    monkeypatch.setattr(own_work, "_throw", throw)
    own, me = OwnWork(memory.pulse(0)), threading.get_ident()
    with own.going_on():
        own.call_off()
        own.call_off()
    assert thrown == [(me, CalledOff), (me, own_work._TakenBack)]
    own.call_off()
    OwnWork(memory.pulse(0)).call_off()
    assert len(thrown) == 2


CALLED_OFF = """
import sys, threading
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.own_work import CalledOff, OwnWork

own = OwnWork(SharedMemory(allocate(1), 1).pulse(0))
try:
    with own.going_on():
        threading.Timer(0.1, own.call_off).start()
        while True:
            pass
except CalledOff:
    sys.setprofile(lambda *_: None)
    print((lambda: "still here")())
"""


def test_a_program_whose_work_was_called_off_may_be_profiled() -> None:
    """In a process of its own: where Python looks for exceptions for ever, no time limit of pytest's is heard."""
    done = subprocess.run([sys.executable, "-c", CALLED_OFF], capture_output=True, text=True, timeout=60)
    assert done.stdout == "still here\n", done.stderr


def test_headway_of_the_thread_is_rank_0s_only_inside(memory) -> None:
    pulse = memory.pulse(0)
    own, before = OwnWork(pulse), pulse.far
    made()
    assert pulse.far == before
    with own.going_on():
        assert own.thread == threading.get_native_id()
        made()
    assert pulse.far != before
