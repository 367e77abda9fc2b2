"""What ranks say of themselves in the memory that they share."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from nanochat.engine.parallel.channel import SLOTS, Receiver, Sender, SharedMemory, allocate
from nanochat.errors import EngineDead


@pytest.fixture
def memory():
    descriptor = allocate(2)
    yield SharedMemory(descriptor, 2)
    os.close(descriptor)


def wait_until(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_worker_without_a_message_waits_and_one_with_a_message_works(memory) -> None:
    ours, theirs = socket.socketpair()
    pulse, received = memory.pulse(1), []
    receiver = Receiver(memory, 1, theirs)
    thread = threading.Thread(target=lambda: received.append(receiver.receive()))
    assert not pulse.waiting
    thread.start()
    wait_until(lambda: pulse.waiting)
    Sender(memory, [ours], lambda: None).send(b"a step")
    thread.join()
    assert received == [b"a step"] and not pulse.waiting
    ours.close()
    assert receiver.receive() is None and not pulse.waiting
    theirs.close()


def test_rank_0_waits_for_workers_that_are_behind(memory) -> None:
    ours, theirs = socket.socketpair()
    pulse, waited = memory.pulse(0), []

    def check() -> None:
        waited.append(pulse.waiting)
        raise EngineDead("a worker is lost")

    sender = Sender(memory, [ours], check)
    for _ in range(SLOTS):
        sender.send(b"a step")
    assert not waited
    with pytest.raises(EngineDead):
        sender.send(b"one too many")
    assert waited == [True] and not pulse.waiting
    ours.close()
    theirs.close()
