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
