"""Ctrl-C while an engine works: what was queued is ended, and the next request finds an engine as new."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType

import pytest
from hash_model import hash_core, reply

from nanochat.engine.core import EngineCore
from nanochat.engine.kv_cache import KVCache
from nanochat.engine.replies import Replies
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Scheduler
from nanochat.errors import EngineDead

SEATS = 3


def requests() -> list[Request]:
    """Four that preempt each other; one of them has two replies."""
    return [
        Request(
            list(range(i, i + 40)),
            SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, n=1 + (i == 2)),
            priority=i % 2,
        )
        for i in range(4)
    ]


class Interrupt:
    """KeyboardInterrupt at one of the places where Python looks for signals: at a call, and behind one of C's."""

    def __init__(self, nth: int, within: CodeType) -> None:
        self.place: str | None = None
        self._nth = nth
        self._within = within
        self._depth = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if code is self._within and event in ("call", "return"):
            self._depth += 1 if event == "call" else -1
        if not self._depth or event not in ("call", "c_return") or "nanochat" not in code.co_filename:
            return
        self._nth -= 1
        if self._nth == 0:
            self.place = f"{code.co_name}, line {frame.f_lineno}, {event}"
            raise KeyboardInterrupt


def run(core: EngineCore) -> list[int]:
    tokens: list[int] = []
    for _ in range(1000):
        if not core.has_work:
            return tokens
        tokens += [token for update in core.step() for token in update.token_ids]
    raise AssertionError("the engine makes no progress")


def works_as_new(core: EngineCore) -> None:
    core.cache.check(())
    core.cache.check_idle()
    scheduler = core.scheduler
    assert sorted(scheduler._seats) == list(range(SEATS)) and not scheduler.running and not scheduler.waiting
    core.add(Request([1, 2, 3], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)))
    assert run(core) == reply([1, 2, 3], 9)


@pytest.mark.parametrize("within, stride", [(Replies.end, 1), (Scheduler.schedule, 3)])
def test_what_an_interrupt_leaves_anywhere_is_undone_by_an_abort(
    within: Callable[..., object], stride: int
) -> None:
    for nth in range(1, 10_000, stride):
        core, asked = hash_core(12, max_num_seqs=SEATS), requests()
        for request in asked:
            core.add(request)
        interrupt = Interrupt(nth, within.__code__)
        sys.setprofile(interrupt)
        try:
            run(core)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        if interrupt.place is None:
            assert nth > 40, "the places that are meant were met"
            return
        for request in asked:
            core.abort(request.request_id)
        core.step()
        try:
            works_as_new(core)
        except BaseException as error:
            raise AssertionError(f"interrupted in {interrupt.place}") from error


@pytest.mark.parametrize("owner, name", [(KVCache, "release"), (Scheduler, "remove")])
@pytest.mark.parametrize("before", [True, False])
def test_an_abort_that_was_interrupted_is_done_again(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, before: bool
) -> None:
    core, asked = hash_core(12, max_num_seqs=SEATS), requests()
    for request in asked:
        core.add(request)
    core.step()
    whole = getattr(owner, name)

    def interrupted(*args: object) -> None:
        if not before:
            whole(*args)
        raise KeyboardInterrupt

    for request in asked:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, interrupted)
            core.abort(request.request_id)
        core.abort(request.request_id)
    core.step()
    works_as_new(core)


def test_an_engine_that_cannot_go_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    core = hash_core(12, max_num_seqs=SEATS)
    for request in requests():
        core.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "schedule", lambda _: [])
        with pytest.raises(EngineDead, match="4 requests were ended"):
            core.step()
    core.step()
    works_as_new(core)
