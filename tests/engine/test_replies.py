"""The replies under way, without a model: what their tokens and their ends bring."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.outputs import FinishReason
from nanochat.engine.replies import Replies
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Budget, Scheduler
from nanochat.engine.sequence import Sequence
from nanochat.engine.step import Token

EOS = 7


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(KVCache(8, BLOCK_SIZE), Budget(4, 64, 64))


@pytest.fixture
def replies(scheduler: Scheduler) -> Replies:
    return Replies(scheduler)


def begin(replies: Replies, request_id: str = "one", n: int = 1, **options: Any) -> list[Sequence]:
    """A request's sequences, under way."""
    params = SamplingParams(**{"max_tokens": 3, **options})
    sequences = [
        Sequence(request_id, index, (1, 2), params, seed=0, priority=0, arrival=index, submitted=0.0,
                 max_tokens=params.max_tokens or 0, root=b"", eos_ids=frozenset({EOS}))
        for index in range(n)
    ]  # fmt: skip
    replies.begin(request_id, sequences)
    return sequences


def grown(replies: Replies, sequence: Sequence, *tokens: int) -> FinishReason | None:
    """How the reply ended with these tokens; None where it goes on."""
    for now, token in enumerate(tokens, start=1):
        replies.grow(sequence, Token(token, finite=True), float(now))
    finished = replies.take_updates()[-1].finished
    return None if finished is None else finished.finish_reason


def test_a_reply_ends_with_its_last_token_and_no_other(replies: Replies) -> None:
    assert grown(replies, *begin(replies, "long"), 3, 4) is None
    assert grown(replies, *begin(replies, "whole"), 3, 4, 5) is FinishReason.LENGTH
    assert grown(replies, *begin(replies, "eos"), 3, EOS) is FinishReason.STOP
    assert grown(replies, *begin(replies, "stop", stop_token_ids=[4]), 3, 4) is FinishReason.STOP
    assert grown(replies, *begin(replies, "least", min_tokens=2), 3, EOS) is None
    assert list(replies.requests) == ["long", "least"]


def test_what_ends_leaves_the_scheduler_and_only_the_last_update_of_a_request_says_so(
    replies: Replies, scheduler: Scheduler
) -> None:
    first, second = begin(replies, n=2)
    replies.end(second, FinishReason.ERROR, error="broken")
    assert scheduler.waiting == [first] and [*replies.of("one")] == [first] and replies
    replies.end(first, FinishReason.ABORT)
    assert not scheduler.waiting and not replies and not replies.sequences
    updates = replies.take_updates()
    assert [(update.index, update.last) for update in updates] == [(1, False), (0, True)]
    assert updates[0].finished is not None and updates[0].finished.error == "broken"
    assert not replies.take_updates()


def test_an_abort_ends_all_of_a_request_and_nothing_else(replies: Replies) -> None:
    begin(replies, n=2)
    (other,) = begin(replies, "two")
    replies.abort("one")
    replies.abort("one")
    replies.abort("nobody")
    assert replies.sequences == [other]
    assert [update.request_id for update in replies.take_updates()] == ["one", "one"]


def test_the_first_token_brings_the_figures_of_the_prompt(replies: Replies) -> None:
    (sequence,) = begin(replies)
    for token in (3, 4):
        replies.grow(sequence, Token(token, finite=True), now=2.5)
    first, second = replies.take_updates()
    assert first.first is not None and first.first.ttft == 2.5 and second.first is None
