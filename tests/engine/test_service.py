"""The engine in its thread: streams from threads and asyncio, cancels, loads and deaths. The model is a hash (see hash_model)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hash_model import HashModel, hash_config, hash_loaded, reply

from nanochat.engine import loading
from nanochat.engine.outputs import FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.service import EngineService
from nanochat.errors import ContextOverflow, EmptyPrompt, EngineDead, ModelNotFound

GREEDY = {"temperature": 0.0, "ignore_eos": True}
WAIT = 30.0


def request(prompt=(1, 2, 3), max_tokens: int = 20, **options) -> Request:
    return Request(list(prompt), SamplingParams(max_tokens=max_tokens, **GREEDY, **options))


def test_a_stream_read_from_a_thread_brings_every_token_in_order(ready: EngineService) -> None:
    ids = [token for delta in ready.submit(request()) for token in delta.token_ids]
    assert ids == reply([1, 2, 3], 20)


def test_what_is_known_with_the_first_token_is_what_the_end_says(ready: EngineService) -> None:
    prompt = list(range(1, 41))
    ready.submit(request(prompt)).result(WAIT)
    stream = ready.submit(request(prompt))
    assert stream.first is None
    last = stream.result(WAIT).metrics
    assert stream.first is not None
    assert (stream.first.prompt_tokens, stream.first.cached_tokens) == (40, 32)
    assert (stream.first.prefill_rate, stream.first.output_tokens) == (last.prefill_rate, 1)


async def test_a_stream_read_from_asyncio_brings_every_token_in_order(ready: EngineService) -> None:
    async def read(start: int) -> list[int]:
        return [token async for delta in ready.submit(request([start])) for token in delta.token_ids]

    results = await asyncio.wait_for(asyncio.gather(*(read(i) for i in range(8))), WAIT)
    assert results == [reply([i], 20) for i in range(8)]


def test_the_bell_rings_once_until_the_reader_drains(ready: EngineService) -> None:
    rung = threading.Semaphore(0)
    rings: list[int] = []

    def ring() -> None:
        rings.append(1)
        rung.release()

    stream = ready.submit(request(max_tokens=50), ring)
    assert rung.acquire(timeout=WAIT)
    assert stream.result(WAIT).finish_reason is FinishReason.LENGTH
    assert 1 <= len(rings) <= 50


@pytest.mark.parametrize("fault", [ValueError, SystemExit])
def test_a_reader_whose_bell_fails_harms_nobody_else(
    ready: EngineService, fault: type[BaseException]
) -> None:
    def broken() -> None:
        raise fault("the reader's own fault")

    bad, good = ready.submit(request(max_tokens=300), on_ready=broken), ready.submit(request((4, 5)))
    assert good.result(WAIT).token_ids == tuple(reply([4, 5], 20))
    assert bad.result(WAIT).token_ids == tuple(reply([1, 2, 3], 300)), "its own tokens are there too"
    ready.unload()
    ready.load(hash_config()).wait(WAIT)
    assert len(ready.submit(request()).result(WAIT).token_ids) == 20


def test_a_reader_whose_event_loop_was_closed_harms_nobody_else(ready: EngineService) -> None:
    left = ready.submit(request(max_tokens=400))
    loop = asyncio.new_event_loop()
    reader = left.__aiter__()
    loop.run_until_complete(reader.__anext__())
    loop.close()
    assert ready.submit(request((4, 5))).result(WAIT).token_ids == tuple(reply([4, 5], 20))
    assert left.result(WAIT).token_ids == tuple(reply([1, 2, 3], 400))


def test_nobody_waits_for_a_reader_that_never_reads(ready: EngineService) -> None:
    ready.submit(request(max_tokens=100))
    assert ready.submit(request([9], 100)).result(WAIT).token_ids == tuple(reply([9], 100))


def test_cancel_keeps_what_was_said_and_frees_the_blocks(ready: EngineService) -> None:
    stream = ready.submit(request(max_tokens=400))
    first = next(iter(stream))
    stream.cancel()
    output = stream.result(WAIT)
    assert output.finish_reason is FinishReason.ABORT
    assert first.token_ids == output.token_ids[: len(first.token_ids)] != ()
    assert list(output.token_ids) == reply([1, 2, 3], len(output.token_ids))
    assert ready.stats().blocks_used == 0


def test_a_request_submitted_while_loading_waits_for_the_model(
    service: EngineService, gate: threading.Event
) -> None:
    gate.clear()
    load = service.load(hash_config())
    stream = service.submit(request())
    assert service.stats().state == "loading" and not load.done and stream.state == "waiting"
    gate.set()
    assert stream.result(WAIT).token_ids == tuple(reply([1, 2, 3], 20))
    assert service.stats().state == "ready"


def test_a_request_cancelled_while_loading_ends(service: EngineService, gate: threading.Event) -> None:
    gate.clear()
    service.load(hash_config())
    stream = service.submit(request())
    stream.cancel()
    gate.set()
    output = stream.result(WAIT)
    assert output.finish_reason is FinishReason.ABORT and output.token_ids == ()


def test_a_request_that_can_never_run_is_refused_at_once_or_through_its_stream(
    service: EngineService, gate: threading.Event
) -> None:
    gate.clear()
    service.load(hash_config()).report(0, 1)
    early = service.submit(request(range(90), 1)), service.submit(Request([1] * 600))
    gate.set()
    assert early[0].result(WAIT).token_ids == tuple(reply(list(range(90)), 1))
    with pytest.raises(ContextOverflow):
        early[1].result(WAIT)
    with pytest.raises(EmptyPrompt):
        service.submit(Request([]))


def test_without_a_model_a_submit_says_so(service: EngineService) -> None:
    with pytest.raises(EngineDead, match="no model is loaded"):
        service.submit(request())


def test_a_load_that_was_left_behind_changes_nothing_when_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    hung, opened, leave = threading.Event(), threading.Event(), []

    def hangs(config, progress, when_stuck):
        leave.append(when_stuck)
        hung.set()
        assert opened.wait(WAIT)
        return hash_loaded(config)

    monkeypatch.setattr(loading, "load", hangs)
    service = EngineService()
    load = service.load(hash_config())
    assert hung.wait(WAIT)
    left = service._thread
    leave[0](EngineDead("it hangs"))
    with pytest.raises(EngineDead, match="it hangs"):
        load.wait(WAIT)
    opened.set()
    assert left is not None
    left.join(WAIT)
    assert service.stats().state == "dead" and service._core is None and not left.is_alive()
    service.load(hash_config()).wait(WAIT)
    assert service.stats().state == "ready"
    service.close()


def test_a_failed_load_says_why_and_a_fresh_one_works(
    service: EngineService, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    good = loading.load

    def fails(config, *_):
        raise ModelNotFound("no such folder")

    monkeypatch.setattr(loading, "load", fails)
    with pytest.raises(ModelNotFound):
        service.load(hash_config()).wait(WAIT)
    assert service.stats().state == "dead" and service.stats().error == "no such folder"
    monkeypatch.setattr(loading, "load", good)
    service.load(hash_config()).wait(WAIT)
    assert service.submit(request()).result(WAIT).finish_reason is FinishReason.LENGTH


def test_a_bug_in_a_step_ends_every_stream_with_an_error_and_a_fresh_load_works(
    ready: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = HashModel.forward

    def breaks(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HashModel, "forward", breaks)
    streams = [ready.submit(request([i])) for i in range(3)]
    for stream in streams:
        with pytest.raises(EngineDead, match="a bug"):
            stream.result(WAIT)
    with pytest.raises(EngineDead):
        ready.submit(request())
    monkeypatch.setattr(HashModel, "forward", forward)
    ready.load(hash_config()).wait(WAIT)
    assert ready.submit(request()).result(WAIT).token_ids == tuple(reply([1, 2, 3], 20))


class Lingering(EngineService):
    """Its thread has decided to end, and takes its time to do so."""

    def __init__(self) -> None:
        super().__init__()
        self.decided, self.may_end = threading.Event(), threading.Event()

    def _turn(self) -> bool:
        going = super()._turn()
        if not going:
            self.decided.set()
            self.may_end.wait(WAIT)
        return going


def test_what_is_posted_while_the_thread_ends_is_done_by_another(gate: threading.Event) -> None:
    service = Lingering()
    service.reset_prefix_cache()
    closing = threading.Thread(target=service.close)
    closing.start()
    assert service.decided.wait(WAIT)
    load = service.load(hash_config())
    try:
        load.wait(WAIT)
    finally:
        service.may_end.set()
        closing.join(WAIT)
    assert service.submit(request()).result(WAIT).token_ids == tuple(reply([1, 2, 3], 20))
    service.close()


def test_unload_ends_what_runs_and_keeps_its_text(ready: EngineService) -> None:
    stream = ready.submit(request(max_tokens=400))
    next(iter(stream))
    ready.unload()
    assert stream.result(WAIT).finish_reason is FinishReason.ABORT
    with pytest.raises(EngineDead):
        ready.submit(request())


def test_n_replies_come_in_order(ready: EngineService) -> None:
    outputs = ready.submit(request(n=3)).results(WAIT)
    assert [output.index for output in outputs] == [0, 1, 2]
    assert all(list(output.token_ids) == reply([1, 2, 3], 20) for output in outputs)


def test_statistics_count_every_token(ready: EngineService) -> None:
    for _ in range(2):
        ready.submit(request(range(40), 10)).result(WAIT)
    stats = ready.stats()
    assert (stats.prefill_tokens, stats.cached_tokens, stats.decode_tokens) == (40 + 8, 32, 18)
    assert stats.blocks_free + stats.blocks_cached + stats.blocks_used == stats.blocks_total
    assert stats.running == stats.waiting == 0


def test_many_threads_submit_and_cancel_at_once(ready: EngineService) -> None:
    failures: list[object] = []

    def work(start: int) -> None:
        for i in range(10):
            stream = ready.submit(request([start, i], 30))
            if i % 3 == 0:
                stream.cancel()
            output = stream.result(WAIT)
            if list(output.token_ids) != reply([start, i], len(output.token_ids)):
                failures.append((start, i))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert ready.stats().blocks_used == 0


LEFT_ALONE = """
import atexit, threading
from hash_model import hash_config, hash_loaded
from nanochat.engine import loading
from nanochat.engine.service import EngineService

def look():  # the first to be registered is the last to be called
    print("nanochat-engine" in [thread.name for thread in threading.enumerate()])

atexit.register(look)
loading.load = lambda config, *_: hash_loaded(config)
EngineService().load(hash_config()).wait(30)
"""


def test_a_program_that_ends_waits_for_the_step_under_way() -> None:
    """A thread that is inside torch when the interpreter ends aborts the process."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_ALONE],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_at_exit_a_service_ends_before_the_models_that_it_runs() -> None:
    """What ends the ranks of a model is a finalizer, made after the service."""
    script = """
import weakref
from nanochat.engine.service import EngineService

class Model: ...

EngineService._close_at_exit = lambda self: print("service")
service = EngineService()
service._post(lambda: None)
model = Model()
weakref.finalize(model, print, "model")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["service", "model"]
