"""What is queued for a device arrives as it was when it was queued, however late; the driver's errors are told."""

from __future__ import annotations

import ctypes
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.kernels.driver import DriverError
from nanochat.kernels.stream_calls import Staging, StreamCalls

STEPS, MOST = 6, 8


class LateDriver:
    """Copies when it is told that the device has come so far; answers `code` to every call."""

    def __init__(self, code: int = 0) -> None:
        self.queue: deque[tuple[int, int, int]] = deque()

        def copy(device: int, host: int, size: int, stream: int) -> int:
            self.queue.append((device, host, size))
            return code

        def answer(*_: object) -> int:
            return code

        def explain(_: int, text: ctypes._Pointer) -> int:
            ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"what went wrong"
            return 0

        self.cuMemcpyHtoDAsync_v2 = copy
        self.cuGraphLaunch, self.cuEventRecord, self.cuEventQuery = answer, lambda *_: code, lambda *_: code
        self.cuGetErrorString = explain

    def run(self) -> None:
        ctypes.memmove(*self.queue.popleft())


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=MOST), max_size=60))
def test_numbers_arrive_as_they_were_queued_as_long_as_the_steps_in_flight_allow(
    steps: list[list[int]],
) -> None:
    driver = LateDriver()
    staging = Staging(StreamCalls(driver), STEPS, MOST)
    arrived = [(ctypes.c_int32 * MOST)() for _ in steps]
    for place, (numbers, target) in enumerate(zip(steps, arrived, strict=True)):
        staging.send(numbers, ctypes.addressof(target), 0)
        if place >= STEPS - 1:
            driver.run()  # the device is STEPS behind at most
    while driver.queue:
        driver.run()
    assert [list(target)[: len(numbers)] for numbers, target in zip(steps, arrived, strict=True)] == steps


def test_a_failed_call_says_which_and_why() -> None:
    calls = StreamCalls(LateDriver(code=700))
    with pytest.raises(DriverError, match=r"cuGraphLaunch: what went wrong \(700\)"):
        calls.launch(1, 0)
    with pytest.raises(DriverError, match="cuEventQuery"):
        calls.is_done(1)


def test_an_event_that_is_not_reached_is_no_error() -> None:
    assert not StreamCalls(LateDriver(code=600)).is_done(1)
    assert StreamCalls(LateDriver()).is_done(1)
