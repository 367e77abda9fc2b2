"""Replies through the graphs of decode and of short prompts are those of the reference, token for token.

What is captured, uploaded and padded is the engine's own; the device is a CPU, see `graphed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interpreted  # noqa: F401  # first: it turns the interpreter on
import pytest
import torch
from graphed import Driver, graphed_core, install
from hash_model import reply
from lagging_device import lag

from nanochat.engine import captures
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return install(monkeypatch)


def add(core: Any, prompt: list[int], length: int) -> str:
    request = Request(prompt, SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True))
    core.add(request)
    return request.request_id


def run(core: Any, most: int = 200) -> dict[str, CompletionOutput]:
    done: dict[str, CompletionOutput] = {}
    for _ in range(most):
        if not core.has_work:
            return done
        done |= {update.request_id: update.finished for update in core.step() if update.finished is not None}
    raise AssertionError(f"still at work after {most} steps")


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i * 7) % 90 for i in range(length)]


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_replies_that_come_and_go_are_the_references(driver: Driver, eager: bool, ahead: int) -> None:
    core, model = graphed_core(eager=eager, max_num_seqs=5)
    lag(core, ahead)
    wanted: dict[str, list[int]] = {}
    done: dict[str, CompletionOutput] = {}
    for length, out in [(3, 30), (40, 3), (17, 20), (1, 9), (90, 12), (16, 1)]:
        text = prompt(length, start=len(wanted))
        wanted[add(core, text, out)] = reply(text, out)
        for _ in range(3):
            done |= {u.request_id: u.finished for u in core.step() if u.finished is not None}
    done |= run(core)
    assert {name: list(output.token_ids) for name, output in done.items()} == wanted
    assert any(layout.captured for layout in model.layouts)
    assert (driver.captures == 0) == eager


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_kernels_are_told_that_a_prompt_in_a_graph_may_be_another_one(driver: Driver, eager: bool) -> None:
    """Of the longest context that there is, its bounds look like a prompt that is read from its beginning."""
    core, model = graphed_core(80, eager=eager, max_model_len=1024)
    add(core, prompt(600), 1)
    run(core)
    bounds = [(layout.query_lens, layout.contexts, layout.captured) for layout in model.layouts]
    assert set(map(str, bounds)) == {"([768], [1024], True)"}


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def run_short_of_memory(core: Any, spoil: Callable[[], None]) -> int:
    """Three replies, memory is spoiled while they run, a fourth joins; returns how many failed. The others must be right."""
    lag(core, 3)
    texts = [(prompt(3), 16), (prompt(18, 1), 16), (prompt(33, 2), 16), (prompt(5, 3), 4)]
    wanted = {add(core, *text): text for text in texts[:3]}
    done: dict[str, CompletionOutput] = {}
    for _ in range(8):
        done |= {u.request_id: u.finished for u in core.step() if u.finished is not None}
    spoil()
    wanted |= {add(core, *texts[3]): texts[3]}
    done |= run(core)
    failed = 0
    for name, (text, length) in wanted.items():
        output, right = done[name], reply(text, length)
        ended = output.finish_reason is FinishReason.ERROR
        assert list(output.token_ids) == (right[: len(output.token_ids)] if ended else right)
        failed += ended
    return failed


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_step_without_graphs_that_ran_out_of_memory_is_done_again_from_where_it_stood(
    steps: int, driver: Driver
) -> None:
    """Of replies whose last tokens nobody has read yet: they are on the device alone."""
    core, model = graphed_core(eager=True, max_num_seqs=5)
    assert run_short_of_memory(core, lambda: model.failures.extend([None] * steps + [OUT_OF_MEMORY])) == 1


def test_where_memory_has_no_room_for_a_graph_its_step_runs_uncaptured_and_no_reply_ends(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures, "STEPS_WITHOUT", 8)
    driver.no_room = lambda: True
    core, _ = graphed_core(max_num_seqs=5)
    lag(core, 3)
    texts = [(prompt(3), 20), (prompt(40, 1), 20), (prompt(18, 2), 20)]
    wanted = {add(core, *text): reply(*text) for text in texts}
    done = run(core)
    assert {name: list(output.token_ids) for name, output in done.items()} == wanted
    assert 2 < driver.captures < 15, "tried now and then, not at every step"
    assert not driver.steps

    driver.no_room = lambda: False
    wanted = {add(core, *text): reply(*text) for text in texts}
    assert {name: list(output.token_ids) for name, output in run(core).items()} == wanted
    assert driver.steps, "there is room again"


def test_a_capture_that_fails_otherwise_is_no_want_of_memory(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = graphed_core()
    monkeypatch.setattr(torch.cuda, "graph", raises(RuntimeError("operation not permitted")))
    add(core, prompt(3), 5)
    with pytest.raises(RuntimeError, match="not permitted"):
        run(core)


def test_beside_other_ranks_a_step_is_not_begun_again(driver: Driver) -> None:
    """They wait in its sums, and would take those of the second attempt for those of the first."""
    attempts = captures.Captures(alone=False)
    with pytest.raises(torch.OutOfMemoryError):
        attempts.attempt("1 rows", raises(OUT_OF_MEMORY))


def raises(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def test_a_capture_that_ended_for_want_of_memory_may_say_so_in_what_came_before(driver: Driver) -> None:
    def capture() -> None:
        try:
            raise OUT_OF_MEMORY
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    assert captures.Captures(alone=True).attempt("1 rows", capture) is None


def test_what_is_captured_while_nobody_waits_is_not_captured_again(driver: Driver) -> None:
    captures._aside.cache_clear()
    core, _ = graphed_core(max_num_seqs=2, max_model_len=64)
    while core.unprepared:
        core.prepare()
    prepared = driver.captures
    assert prepared == 2 * 2 + 3, (
        "batches of 1 and 2 that end with tokens or with logits, prompts of 16, 32 and 64"
    )
    assert driver.streams == 1, "each costs memory as long as the process lives"
    assert len(driver.pools) == 1, "replies and prompts share it"
    texts = [(prompt(3), 8), (prompt(40, 1), 8), (prompt(18, 2), 8)]
    wanted = {add(core, *text): reply(*text) for text in texts}
    assert {name: list(output.token_ids) for name, output in run(core).items()} == wanted
    assert driver.captures == prepared


def test_an_engine_goes_on_when_a_capture_in_idle_time_ends_for_want_of_memory(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = graphed_core()
    failure = RuntimeError("operation failed due to a previous error during capture")
    failure.__cause__ = OUT_OF_MEMORY
    monkeypatch.setattr(torch.cuda, "graph", raises(failure))
    core.prepare()
    assert not core.unprepared


def test_graphs_that_end_with_logits_are_captured_when_every_prompt_has_its_own(driver: Driver) -> None:
    """They are what memory may have no room for any more, and few chats ask for them."""
    core, _ = graphed_core(max_num_seqs=2, max_model_len=64)
    runner = core._runner
    driver.no_room = lambda: any(form == "logits" for _, form in runner._graphs._captured)
    while core.unprepared:
        core.prepare()
    assert [*runner._graphs._captured] == [(1, "whole"), (2, "whole"), (1, "logits")]
    assert [*runner._prefills._captured] == [16, 32, 64]


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_rows_of_padding_own_no_slot_and_belong_to_no_sequence(driver: Driver, eager: bool) -> None:
    core, model = graphed_core(eager=eager)
    nothing = ([-1] * 32, [0, 1], [1])
    for length, cached in [(19, 0), (32, 0), (45, 16)]:  # a graph that is used again is padded anew
        model.told.clear()
        name = add(core, prompt(length, start=20 if length == 32 else 0), 9)
        core.step()
        if not eager and length == 19:  # the capture, and the step before it
            assert [model.told.pop(0) for _ in range(2)] == [nothing] * 2
        blocks = core.sequences[0].blocks
        slots = [blocks[i // 16] * 16 + i % 16 for i in range(cached, length)]
        padded = slots + [-1] * (32 - len(slots))
        assert model.told == [(padded, [0, length - cached], [length])]
        core.abort(name)


def test_an_engine_says_whether_its_steps_are_captured(driver: Driver) -> None:
    assert graphed_core()[0].describe().endswith(", CUDA graphs (plain steps)")
    assert graphed_core(eager=True)[0].describe().endswith(", no CUDA graphs (plain steps)")
