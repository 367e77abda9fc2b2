"""What leaving a stream does to its request, and that two who read one are told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import cast

import pytest
from hash_model import HashModel, reply

from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.engine.stream import Delta, Stream
from nanochat.errors import UsageError

WAIT = 30.0


def endless(prompt: list[int]) -> Request:
    return Request(prompt, SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True))


@pytest.fixture
def patient(ready: EngineService, monkeypatch: pytest.MonkeyPatch) -> EngineService:
    """An engine that stands still in its third step until a cancel comes; without one, for two seconds."""
    asked, forward, cancel, steps = threading.Event(), HashModel.forward, ready._cancel, iter(range(10**6))

    def waits(*args):
        if next(steps) == 2:
            asked.wait(2)
        return forward(*args)

    def cancels(stream: Stream) -> None:
        cancel(stream)
        asked.set()

    monkeypatch.setattr(HashModel, "forward", waits)
    monkeypatch.setattr(ready, "_cancel", cancels)
    return ready


async def ended(stream: Stream) -> FinishReason | None:
    return (await asyncio.to_thread(stream.result, WAIT)).finish_reason


async def test_a_break_cancels_the_request(patient: EngineService) -> None:
    stream = patient.submit(endless([1]))
    async for delta in stream:
        assert delta.token_ids
        break
    assert await ended(stream) is FinishReason.ABORT


async def test_an_error_of_the_reader_cancels_the_request(patient: EngineService) -> None:
    stream = patient.submit(endless([1]))
    with pytest.raises(ZeroDivisionError):
        async for _ in stream:
            raise ZeroDivisionError
    assert await ended(stream) is FinishReason.ABORT


async def test_closing_the_iterator_cancels_the_request(patient: EngineService) -> None:
    stream = patient.submit(endless([1]))
    reader = cast(AsyncGenerator[Delta], aiter(stream))
    await anext(reader)
    await reader.aclose()
    assert await ended(stream) is FinishReason.ABORT


async def test_a_cancelled_task_cancels_the_request(patient: EngineService) -> None:
    stream, begun = patient.submit(endless([1])), asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), WAIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ended(stream) is FinishReason.ABORT


async def test_a_reader_that_runs_out_of_time_cancels_the_request(
    ready: EngineService, held: threading.Event
) -> None:
    stream = ready.submit(endless([1]))

    async def read() -> list[Delta]:
        return [delta async for delta in stream]

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(), 0.01)
    held.set()
    assert await ended(stream) is FinishReason.ABORT


async def test_who_reads_to_the_end_cancels_nothing(
    ready: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[Stream] = []
    monkeypatch.setattr(ready, "_cancel", cancelled.append)
    stream = ready.submit(Request([1], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)))
    async for delta in stream:
        if delta.finished is not None:
            break
    stream.cancel()
    await asyncio.sleep(0)  # the loop's turn in which what was left is closed
    assert not cancelled and stream.result(WAIT).token_ids == tuple(reply([1], 5))


def test_leaving_a_plain_iteration_leaves_the_request_running(ready: EngineService) -> None:
    stream = ready.submit(endless([1]))
    tokens = [*next(iter(stream)).token_ids]
    tokens += stream.take().token_ids
    tokens += [token for delta in stream for token in delta.token_ids]
    assert tokens == reply([1], 400)


async def test_a_second_reader_is_told_and_the_first_misses_nothing(
    ready: EngineService, held: threading.Event
) -> None:
    stream = ready.submit(endless([1]))

    async def read() -> list[int]:
        return [token async for delta in stream for token in delta.token_ids]

    first = asyncio.create_task(read())
    await asyncio.sleep(0)  # its turn: it waits now
    with pytest.raises(UsageError, match="one reader at a time"):
        await read()
    with pytest.raises(UsageError, match="one reader at a time"):
        next(iter(stream))
    held.set()
    assert await asyncio.wait_for(first, WAIT) == reply([1], 400)
