"""A worker does rank 0's steps over its own likenesses of the sequences: what it leaves on its device is what rank 0 leaves."""

from __future__ import annotations

import random
from typing import Any

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
from graphed import graphed_core, install
from lagging_device import lag

from nanochat.engine.admission import Admission
from nanochat.engine.parallel.messages import StepReader, StepWriter
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams


def two_ranks(num_blocks: int, **options: Any) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """(rank 0's core, whose steps a second runner does too; the tokens of both, step by step)."""
    (core, _), (other, _) = (graphed_core(num_blocks, **options) for _ in range(2))
    writer, reader = StepWriter(), StepReader()
    dispatch, seen = core._runner.dispatch, []

    def both(chunks: list[Any]) -> Any:
        message = writer.write(chunks)
        likenesses = reader.read(message)
        seats = [sequence.seat for sequence in reader._known.values() if sequence.seat >= 0]
        assert len(set(seats)) == len(seats), "two on one seat"
        steps = dispatch(chunks), other._runner.dispatch(likenesses)
        seen.append(tuple([token.id for token in step.read()[1]] for step in steps))
        return steps[0]

    core._runner.dispatch = both
    lag(core, 3)
    return core, seen


GREEDY = {"temperature": 0.0, "ignore_eos": True}


def run(core: Any, requests: list[Request]) -> None:
    for request in requests:
        core.add(request)
    while core.has_work:
        core.step()


def test_a_newcomer_on_a_seat_that_somebody_left_gets_its_own_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a graph is captured between its prompt and its next token: all rows are handed back then, also who has left."""
    install(monkeypatch)
    core, seen = two_ranks(120, max_num_seqs=2, prefill_beside_decodes=64)
    leaves = Request(
        [1, 2, 3], SamplingParams(**GREEDY, max_tokens=30, stop_token_ids=tuple(range(0, 97, 9)))
    )
    stays = Request([4, 5, 6, 7], SamplingParams(**GREEDY, max_tokens=40))
    comes = Request([8, 9, 10], SamplingParams(**GREEDY, max_tokens=12))
    run(core, [leaves, stays, comes])
    assert [ours for ours, _ in seen] == [theirs for _, theirs in seen]


@pytest.mark.parametrize("seed", range(4))
def test_ranks_say_the_same_where_sequences_are_preempted_and_seats_are_taken_over(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    monkeypatch.setattr(
        Admission, "_spell", lambda self, words: tuple(tuple(map(int, word.split())) for word in words)
    )
    core, seen = two_ranks(10, max_num_seqs=4, prefill_beside_decodes=32)
    draw = random.Random(seed)
    requests = [
        Request(
            [draw.randrange(90) for _ in range(draw.randint(1, 40))],
            SamplingParams(
                **GREEDY, max_tokens=draw.randint(1, 50), stop_token_ids=draw.sample(range(90), 3),
                **draw.choice(({}, {}, {"logprobs": 1}, {"bad_words": ["5", "17", "0 0", "3 0 0"]})),
            ),
            priority=draw.randrange(3),
        )
        for _ in range(10)
    ]  # fmt: skip
    run(core, requests)
    assert core.scheduler.preemptions > 0
    assert [ours for ours, _ in seen] == [theirs for _, theirs in seen]
