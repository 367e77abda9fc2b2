"""The pace of reading beside replies: steps settle at the time that they may take, whatever a token costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.pace import PrefillPace
from nanochat.engine.scheduler import Chunk

REPLY: Any = SimpleNamespace(prompt=range(4))
PROMPT: Any = SimpleNamespace(prompt=range(100_000))


class Device:
    """Reads a prompt beside a reply, `cost(position)` seconds a token, with two steps always queued ahead.

    `stairs`: a step takes as long as one of the next power of two of tokens.
    """

    def __init__(
        self, pace: PrefillPace, cost: Any, overhead: float = 0.004, *, stairs: bool = False
    ) -> None:
        self.pace, self.cost, self.overhead, self.stairs = pace, cost, overhead, stairs
        self.gaps: list[float] = []

    def read(self, length: int) -> None:
        now, position = 1000.0, 0
        queue: list[tuple[list[Chunk], float]] = []
        while position < length or queue:
            while position < length and len(queue) < 3:
                count = min(self.pace.tokens, length - position)
                chunks = [Chunk(REPLY, 9, 1, True), Chunk(PROMPT, position, count, False)]
                paid = 1 << (count - 1).bit_length() if self.stairs else count
                queue.append((chunks, self.overhead + paid * self.cost(position)))
                position += count
            chunks, seconds = queue.pop(0)
            now += seconds
            self.gaps.append(seconds)
            self.pace.took(chunks, now, True)


@pytest.mark.parametrize("chip", [1.0, 0.5], ids=["H100", "half as fast"])
def test_no_gap_beside_32000_tokens_is_over_40_ms(chip: float) -> None:
    """Qwen3-0.6B by arithmetic: 1,024 tokens take 2 ms, and 22 ms more over 32,000 positions, of an H100."""
    device = Device(PrefillPace(1024, 8192, 0.025), lambda at: (2e-6 + 22e-6 * at / 32_000) / chip)
    device.read(32_000)
    assert max(device.gaps) <= 0.040
    assert sum(device.gaps) <= 2.5 / chip  # and the prompt is not read at a crawl


def test_a_chip_ten_times_slower_reads_less_at_a_time() -> None:
    device = Device(PrefillPace(1024, 8192, 0.025), lambda at: 2e-5 + 22e-5 * at / 32_000)
    device.read(32_000)
    assert max(device.gaps[6:]) <= 0.040


def chip_in_stairs(context: int = 32_000) -> Any:
    """What an H200 takes a token of Qwen3-0.6B's shape beside a reply: 2.7 ms for 1,024 tokens, 26 after 32,000 positions."""
    return lambda at: (2e-3 + 24e-3 * at / context) / 1024


def test_where_time_goes_in_stairs_no_gap_is_over_what_a_step_may_take() -> None:
    device = Device(
        PrefillPace(1024, 1024, 0.015, growth=2.0, stairs=True), chip_in_stairs(), 0.0006, stairs=True
    )
    device.read(32_000)
    assert max(device.gaps) <= 0.018  # two steps were queued before the first one that took longer was seen
    padding = sum(
        1 for gap, shorter in zip(device.gaps, device.gaps[1:], strict=False) if shorter < gap / 1.5
    )
    assert padding <= 2  # once for good, and the prompt's end: no step pays for tokens that it does not read
    assert sum(device.gaps) <= 0.47


@given(st.integers(1, 4096), st.floats(1e-6, 1e-2), st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_in_stairs_a_step_reads_a_power_of_two_or_the_most(
    most: int, cost: float, prompts: list[int]
) -> None:
    pace = PrefillPace(1024, most, 0.015, growth=2.0, stairs=True)
    for prompt in prompts:
        Device(pace, lambda at: cost, stairs=True).read(prompt)
        assert 1 <= pace.tokens <= most
        assert pace.tokens == most or pace.tokens.bit_count() == 1


def test_a_fast_machine_reads_more_at_a_time() -> None:
    pace = PrefillPace(128, 8192, 0.1)
    Device(pace, lambda at: 1e-5).read(200_000)
    assert pace.tokens == 8192


def test_steps_that_tell_nothing_change_nothing() -> None:
    pace = PrefillPace(1024, 8192, 0.025)
    reading, reply = Chunk(PROMPT, 0, 1024, False), Chunk(REPLY, 9, 1, True)
    pace.took([reading, reply], 1.0, True)  # nothing before it: when it began is not known
    pace.took([reading], 2.0, True)  # nobody waited for a token meanwhile
    pace.took([reply], 3.0, False)
    pace.took([reading, reply], 9.0, True)  # the engine had run dry in between
    assert pace.tokens == 1024
    pace.took([Chunk(PROMPT, 1024, 10, False), reply], 9.001, True)  # a prompt's short end
    assert pace.tokens == 1024


def test_a_number_that_was_asked_for_stays() -> None:
    pace = PrefillPace(256, 8192, 0.0)
    Device(pace, lambda at: 1e-3).read(4000)
    assert pace.tokens == 256
