"""Steps queued ahead of the one that is read: when more are queued, when not, and what is done while nobody waits."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hash_model import hash_config, hash_core, hash_loaded, reply
from lagging_device import LaggingDevice, LaggingStep, lag

from nanochat.engine import loading, runner
from nanochat.engine.core import EngineCore
from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.service import EngineService
from nanochat.engine.step import EagerStep
from nanochat.engine.steps_ahead import StepsAhead
from nanochat.errors import EngineDead

WAIT = 30.0


def request(length: int, max_tokens: int = 100) -> Request:
    return Request(
        [*range(1, length + 1)], SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    )


def on_gpu(core: EngineCore) -> EngineCore:
    core._ahead = StepsAhead(on_gpu=True)
    return core


def test_tokens_that_are_there_do_not_wait_for_the_launch_of_other_steps() -> None:
    core = hash_core(32)
    core._ahead.depth = 8
    core.add(request(3))
    core.step()
    assert [len(update.token_ids) for update in core.step()] == [1]
    assert not core._in_flight, "more steps were queued before the finished one was read"


def test_a_device_that_is_behind_has_steps_queued() -> None:
    core = hash_core(32)
    lag(core, 4)
    core.add(request(3))
    core.step()
    core.step()
    assert len(core._in_flight) == 4


def penalised(max_tokens: int = 100, length: int = 3) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, frequency_penalty=0.1)
    return Request([*range(1, length + 1)], params)


@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_replies_whose_penalties_wait_for_tokens_that_were_read_share_their_steps(ahead: int) -> None:
    """Also when they began apart, beside one that waits for nothing."""
    core = hash_core(64, prefill_beside_decodes=8)
    lag(core, ahead)
    core.add(request(4))
    for length in (3, 60, 33):
        core.add(penalised(length=length))
        for _ in range(length // 3):
            core.step()
    said = [len(core.step()) for _ in range(10)]
    assert set(said) <= {1, 4} and said.count(4) >= 5, "all of them, or only the one"


@pytest.mark.parametrize("ahead", [2, 8, 48])
def test_beside_a_reply_that_is_queued_far_ahead_one_with_penalties_gets_every_other_step(ahead: int) -> None:
    core = hash_core(64)
    lag(core, ahead)
    plain, other = request(9), penalised()
    core.add(plain)
    for _ in range(5):
        core.step()
    core.add(other)
    said = {plain.request_id: 0, other.request_id: 0}
    for step in range(60):
        for update in core.step():
            said[update.request_id] += len(update.token_ids) if step >= ahead else 0
    assert said[plain.request_id] <= 2 * said[other.request_id] + 2 and said[other.request_id] > 4


class Device:
    """Answers whether its last step is done as it is told."""

    def __init__(self, core: EngineCore) -> None:
        self._runner, self.dry = core._runner, False

    def dispatch(self, chunks: list[Chunk]) -> Any:
        step = LaggingStep(self._runner.dispatch(chunks))
        step.done = lambda: self.dry  # type: ignore[method-assign]
        return step


def test_a_device_that_ran_dry_gets_more_steps_ahead_but_not_for_a_prompts_launches() -> None:
    core = on_gpu(hash_core(64, max_num_batched_tokens=16, prefill_beside_decodes=16))
    device = core._runner = Device(core)  # type: ignore[assignment]
    core.add(request(44))
    core.step()
    assert core._in_flight[-1].chunks[0].count > 1
    device.dry = True
    before = core._ahead.depth
    core.step()
    assert core._ahead.depth == before, "a prompt's step was taken for one that ran dry"
    while core._in_flight and core._in_flight[-1].chunks[0].count > 1:
        core.step()
    device.dry = False
    core.step()
    device.dry = True
    core.step()
    assert core._ahead.depth == 2 * before


def test_of_the_long_steps_that_read_a_prompt_two_are_in_flight() -> None:
    """A stop and another request wait for what is queued."""
    core = on_gpu(hash_core(64, max_num_batched_tokens=8, prefill_beside_decodes=8))
    core._runner = Device(core)  # type: ignore[assignment]
    core._ahead.depth = 48
    core.add(request(60))
    for _ in range(4):
        core.step()
        assert [step.chunks[-1].count for step in core._in_flight] == [8]


class Chip:
    """A device whose steps take `STEP`, and an engine that cannot run while somebody holds the interpreter's lock."""

    STEP, HOST = 0.00065, 0.00015

    def __init__(self, hold: float, every: float) -> None:
        self.now, self.free = 0.0, 0.0  # the clock, and when the device is through with what is queued
        self._hold, self._every = hold, every
        self.ahead = StepsAhead(on_gpu=True, clock=lambda: self.now)
        self._queue: list[Any] = []
        self.deepest = 0
        self.bending = (
            0.0  # seconds of the host for a step with a reply that counts its tokens; 0: there is none
        )

    def run(self, seconds: float) -> int:
        """Steps that were read in that time."""
        end, read = self.now + seconds, 0
        while self.now < end:
            self.ahead.look(self._queue)
            while self.ahead.takes(self._queue):
                self._queue.append(self._dispatch())
                if self._queue[0].done():
                    break
            self.deepest = max(self.deepest, len(self._queue))
            self._wait(max(self._queue.pop(0).end - self.now, 0.0))
            read += 1
        return read

    def _dispatch(self) -> Any:
        counts = bool(self.bending) and not any(step.counts for step in self._queue)
        self._wait(self.HOST + self.bending * counts)
        self.free = end = max(self.free, self.now) + self.STEP
        chunk = SimpleNamespace(count=1, sequence=SimpleNamespace(needs_history=counts))
        return SimpleNamespace(chunks=[chunk], counts=counts, end=end, done=lambda: self.now >= end)

    def _wait(self, seconds: float) -> None:
        """Time goes on; who wants to go on in a hold waits for its end."""
        self.now += seconds
        if self._hold and self.now % self._every < self._hold:
            self.now += self._hold - self.now % self._every


def test_a_thread_that_holds_the_lock_for_20_ms_of_50_costs_a_reply_three_percent_at_most() -> None:
    held, alone = Chip(0.020, 0.050), Chip(0.0, 1.0)
    assert held.run(2.0) >= 0.97 * alone.run(2.0), "from the first step on"
    assert held.run(5.0) >= 0.99 * alone.run(5.0), "when the hold is known"


def test_what_is_queued_for_a_hold_is_not_queued_any_more_when_it_does_not_come_again() -> None:
    chip = Chip(0.020, 0.050)
    chip.run(1.0)
    assert chip.deepest > 30
    chip._hold, chip.deepest = 0.0, 0
    chip.run(5.0)
    chip.deepest = 0
    chip.run(1.0)
    assert chip.deepest <= 5


@pytest.mark.parametrize("bending", [0.0001, 0.0006, 0.006])
def test_beside_a_reply_with_penalties_a_device_that_runs_dry_is_no_reason_to_queue_more(
    bending: float,
) -> None:
    """Two steps are in flight while it runs, however many might be; what they are done with is told by nothing."""
    chip = Chip(0.0, 1.0)
    chip.run(0.5)
    before = chip.ahead.depth
    chip.bending = bending
    chip.run(0.1)
    chip.deepest = 0
    chip.run(1.0)
    assert chip.deepest == 2
    chip.bending = 0.0
    chip.run(0.1)
    assert chip.ahead.depth <= before and chip.deepest <= before + 1, "a stop waits for what is queued"


def test_a_minute_in_which_nobody_asks_is_no_hold() -> None:
    core = on_gpu(hash_core(64))
    now = 0.0
    core._ahead = StepsAhead(on_gpu=True, clock=lambda: now)
    lag_runner = LaggingDevice(core._runner)
    core._runner = lag_runner  # type: ignore[assignment]
    for _ in range(3):
        core.add(request(3, max_tokens=40))
        while core.has_work:
            core.step()
            now += 0.001
        now += 60.0
        assert core._ahead.depth <= 5


class Prepared:
    """A runner with `parts` of work to do beforehand."""

    def __init__(self, runner: Any, parts: int, fails: bool = False) -> None:
        self._runner, self._parts, self._fails = runner, parts, fails
        self.done, self.finished = 0, threading.Event()
        self.order: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    @property
    def unprepared(self) -> bool:
        return self.done < self._parts

    def prepare(self) -> None:
        if self._fails:
            raise RuntimeError("no more of it")
        self.done += 1
        self.order.append("prepare")
        if self.done == self._parts:
            self.finished.set()

    def dispatch(self, chunks: list[Chunk]) -> Any:
        self.order.append("step")
        return self._runner.dispatch(chunks)


def serve(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[EngineService, Prepared, threading.Event]:
    loaded = hash_loaded(hash_config())
    runner = Prepared(loaded.runner, **options)
    loaded = loading.Loaded(**{**{n: getattr(loaded, n) for n in loaded.__slots__}, "runner": runner})
    opened = threading.Event()

    def load(config: Any, *_: Any) -> loading.Loaded:
        assert opened.wait(WAIT)
        return loaded

    monkeypatch.setattr(loading, "load", load)
    return EngineService(), runner, opened


def test_a_service_prepares_while_nobody_waits_and_a_message_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, runner, opened = serve(monkeypatch, parts=3)
    service.load(hash_config())
    stream = service.submit(
        Request([1, 2, 3], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True))
    )
    opened.set()
    assert list(stream.result(WAIT).token_ids) == reply([1, 2, 3], 5)
    assert runner.finished.wait(WAIT)
    assert runner.order == ["step"] * 5 + ["prepare"] * 3
    service.close()


def test_a_device_that_fails_while_it_prepares_ends_the_engine_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, _, opened = serve(monkeypatch, parts=1, fails=True)
    opened.set()
    service.load(hash_config()).wait(WAIT)
    with pytest.raises(EngineDead, match="no more of it"):
        while True:
            service.submit(request(3)).result(WAIT)
    service.close()


def test_a_step_whose_results_found_no_room_is_done_again_with_the_token_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That token is on the device alone: the one that the failed step drew must not have taken its place."""
    core, step, made = hash_core(32), runner.EagerStep, []
    lag(core, 3)
    first, second = request(3, 12), request(9, 12)

    def short(*args: Any) -> EagerStep:
        made.append(args)
        if len(made) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(*args)

    monkeypatch.setattr(runner, "EagerStep", short)
    core.add(first)
    core.add(second)
    done = {}
    while core.has_work:
        done |= {update.request_id: update.finished for update in core.step() if update.finished is not None}
    outputs = [done[first.request_id], done[second.request_id]]
    assert sorted(output.finish_reason for output in outputs) == [FinishReason.ERROR, FinishReason.LENGTH]
    for output, each in zip(outputs, (first, second), strict=True):
        right = reply(list(each.prompt_ids), 12)
        assert list(output.token_ids) == right[: len(output.token_ids)]
