"""What a request must be, and that one which is bad, or a bug beside it, harms nobody else: nobody waits for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hash_model import hash_config, hash_core, reply

from nanochat.engine import loading
from nanochat.engine.config import EngineConfig
from nanochat.engine.core import EngineCore
from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.errors import EngineDead, InvalidSampling, NanochatError

WAIT = 30.0
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


def endless(prompt: list[int], **options) -> Request:
    return Request(prompt, SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True), **options)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt_ids": [1.5]},
        {"prompt_ids": [1, "2"]},
        {"prompt_ids": [True]},
        {"prompt_ids": "text"},
        {"prompt_ids": None},
        {"prompt_ids": 504},
        {"params": None},
        {"params": {"temperature": 1.0}},
        {"priority": "high"},
        {"priority": None},
        {"priority": 0.5},
        {"request_id": None},
        {"request_id": 7},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(InvalidSampling, match=f"^{next(iter(values))} must "):
        Request(**{"prompt_ids": [1], **values})  # type: ignore[arg-type]


def test_a_prompt_is_kept_as_it_was_given() -> None:
    prompt = [1, 2, 3]
    request, packed = Request(prompt), Request(np.array([4, 5]))  # type: ignore[arg-type]
    prompt.append("text")  # type: ignore[arg-type]
    assert request.prompt_ids == (1, 2, 3)
    assert packed.prompt_ids == (4, 5) and all(type(token) is int for token in packed.prompt_ids)


def test_of_two_requests_of_one_name_the_second_is_refused(
    ready: EngineService, held: threading.Event
) -> None:
    first = ready.submit(endless([1], request_id="mine"))
    second = ready.submit(endless([2], request_id="mine"))
    second.cancel()
    held.set()
    with pytest.raises(InvalidSampling, match="'mine' is still running"):
        second.result(WAIT)
    second.cancel()
    assert first.result(WAIT).token_ids == tuple(reply([1], 400)), "the other's cancel is not for it"
    again = ready.submit(endless([3], request_id="mine"))
    again.cancel()
    assert again.result(WAIT).finish_reason is FinishReason.ABORT
    assert ready.stats().state == "ready"


def test_a_name_is_free_as_soon_as_its_request_was_cancelled(
    ready: EngineService, held: threading.Event
) -> None:
    first = ready.submit(endless([1], request_id="mine"))
    first.cancel()
    second = ready.submit(endless([2], request_id="mine"))
    held.set()
    assert first.result(WAIT).finish_reason is FinishReason.ABORT
    assert second.result(WAIT).token_ids == tuple(reply([2], 400))


def test_a_core_refuses_a_name_that_is_taken() -> None:
    core = hash_core()
    core.add(endless([1], request_id="mine"))
    with pytest.raises(InvalidSampling):
        core.add(endless([2], request_id="mine"))
    core.abort("mine")
    core.add(endless([2], request_id="mine"))


def test_a_priority_that_cannot_be_ordered_is_refused(ready: EngineService) -> None:
    stream = ready.submit(endless([1]))
    with pytest.raises(InvalidSampling, match="priority"):
        ready.set_priority(stream.request_id, "high")  # type: ignore[arg-type]
    assert len(stream.result(WAIT).token_ids) == 400


@pytest.mark.parametrize("fault", [TypeError, SystemExit])
def test_a_bug_in_taking_a_request_in_fails_that_request_alone(
    ready: EngineService, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    add = EngineCore.add

    def breaks(core: EngineCore, request: Request, submitted: float | None = None) -> None:
        add(core, request, submitted)
        if request.request_id == "bad":
            raise fault("a bug")

    monkeypatch.setattr(EngineCore, "add", breaks)
    good, bad = ready.submit(endless([1])), ready.submit(endless([2], request_id="bad"))
    with pytest.raises(NanochatError, match=r"could not be started: .*a bug"):
        bad.result(WAIT)
    assert good.result(WAIT).token_ids == tuple(reply([1], 400))
    assert ready.stats().state == "ready" and ready.stats().running == 0


@pytest.mark.parametrize("fault", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["abort", "reprioritise", "step", "check_ranks", "reset_prefix_cache"])
def test_whatever_ends_the_engine_fails_every_stream(
    ready: EngineService,
    held: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[BaseException],
    place: str,
) -> None:
    def breaks(*_: object) -> None:
        raise fault("a bug")

    streams = [ready.submit(endless([i])) for i in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, place, breaks)
        streams[0].cancel()
        ready.set_priority(streams[1].request_id, 3)
        ready.reset_prefix_cache()
        held.set()
        for stream in streams[1:]:
            with pytest.raises(EngineDead, match="a bug"):
                stream.result(WAIT)
    assert ready.stats().state == "dead" and streams[0].finished
    ready.load(hash_config()).wait(WAIT)
    assert ready.submit(Request([1], GREEDY)).result(WAIT).token_ids == tuple(reply([1], 20))


@pytest.mark.parametrize("place", ["abort", "close"])
def test_a_bug_while_a_model_is_unloaded_ends_every_stream(
    ready: EngineService, held: threading.Event, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("a bug")

    stream = ready.submit(endless([1]))
    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, place, breaks)
        load = ready.load(hash_config())
        held.set()
        if place == "abort":
            with pytest.raises(EngineDead, match="a bug"):
                stream.result(WAIT)
        else:
            assert stream.result(WAIT).finish_reason is FinishReason.ABORT
        load.wait(WAIT)
    assert ready.submit(Request([1], GREEDY)).result(WAIT).token_ids == tuple(reply([1], 20))


def test_a_load_that_ends_the_thread_ends_as_failed(
    service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves(*_: object) -> None:
        raise SystemExit("a library's own")

    monkeypatch.setattr(loading, "load", leaves)
    load = service.load(EngineConfig(model="no path"))  # type: ignore[arg-type]
    with pytest.raises(EngineDead, match="loading no path failed: SystemExit: a library's own"):
        load.wait(WAIT)
    load = service.load(EngineConfig(model=Path("a path")))
    stream = service.submit(Request([1], GREEDY))
    for waits in (lambda: load.wait(WAIT), lambda: stream.result(WAIT)):
        with pytest.raises(EngineDead, match="a library's own"):
            waits()


def test_a_cancel_is_told_although_the_engine_has_graphs_to_capture(
    ready: EngineService, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    monkeypatch.setattr(EngineCore, "unprepared", property(lambda _: not left.is_set()))
    monkeypatch.setattr(EngineCore, "prepare", lambda _: left.set())
    stream = ready.submit(endless([1]))
    stream.cancel()
    held.set()
    assert stream.result(WAIT).finish_reason is FinishReason.ABORT
