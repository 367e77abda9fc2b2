"""Rank 0's work is called off, and nothing but it."""

from __future__ import annotations

import os
import threading
import time

import pytest

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
    threading.Timer(0.1, own.call_off).start()
    with pytest.raises(CalledOff), own.going_on():
        while True:
            pass
    assert own.thread is None


def test_what_is_called_off_too_late_ends_nothing_else(memory) -> None:
    """It comes between the last line of the work and whatever the thread does next, a hundred times."""
    for _ in range(100):
        own = OwnWork(memory.pulse(0))
        inside = threading.Event()

        def call_off(own: OwnWork = own, inside: threading.Event = inside) -> None:
            inside.wait()
            own.call_off()

        other = threading.Thread(target=call_off)
        other.start()
        try:
            with own.going_on():
                inside.set()
        except CalledOff:
            pass  # it came in time
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass  # not in here
        other.join()
        own.call_off()
        assert own.thread is None


def test_headway_of_the_thread_is_rank_0s_only_inside(memory) -> None:
    pulse = memory.pulse(0)
    own, before = OwnWork(pulse), pulse.far
    made()
    assert pulse.far == before
    with own.going_on():
        assert own.thread == threading.get_native_id()
        made()
    assert pulse.far != before
