"""Which stream gets what the engine brings."""

from __future__ import annotations

from nanochat.engine.open_streams import OpenStreams
from nanochat.engine.request import Request, Update
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.sequence import Sequence
from nanochat.engine.stream import Stream
from nanochat.errors import EngineDead


def stream(name: str) -> Stream:
    return Stream(Request([1, 2, 3], request_id=name), lambda stream: None)


def opened(*names: str) -> tuple[OpenStreams, list[Stream]]:
    streams, listed = OpenStreams(), [stream(name) for name in names]
    for each in listed:
        streams.add(each)
    return streams, listed


def sequence(name: str, *, computed: int, started: float = 1.0, ready: bool = False) -> Sequence:
    made = Sequence(name, 0, (1, 2, 3), SamplingParams(), seed=0, priority=0, arrival=0, submitted=0.0,
                    max_tokens=9, root=b"", eos_ids=frozenset(), started=started, num_computed=computed)  # fmt: skip
    made.prompt_ready = ready
    return made


def test_each_stream_gets_its_own_text_and_is_open_until_its_last() -> None:
    streams, (one, two) = opened("one", "two")
    streams.deliver(
        [Update("one", 0, "a", (1,)), Update("gone", 0, "?", (2,)), Update("two", 0, "b", (3,), last=True)]
    )
    assert (one.take().text, two.take().text) == ("a", "b")
    assert one in streams and two not in streams and streams.requests == ["one"]


def test_another_stream_of_the_same_name_is_not_the_open_one() -> None:
    streams, (one,) = opened("one")
    assert one in streams and stream("one") not in streams


def test_the_prefill_shows_from_its_start_until_the_prompt_is_whole() -> None:
    streams, (waits, reads, whole) = opened("waits", "reads", "whole")
    streams.show_prefill(
        [
            sequence("waits", computed=0, started=0.0),
            sequence("reads", computed=2),
            sequence("whole", computed=3, ready=True),
            sequence("gone", computed=1),
        ]
    )
    assert (reads.state, reads.prefill_progress) == ("prefilling", (2, 3))
    assert (waits.state, whole.state) == ("waiting", "waiting") and waits.prefill_progress == (0, 3)


def test_a_failure_ends_every_open_stream() -> None:
    streams, listed = opened("one", "two")
    streams.fail(EngineDead("over"))
    assert all(each.finished and isinstance(each.error, EngineDead) for each in listed)
    assert not streams.requests
