"""Memory that runs out on a GPU: one request ends, the others and the next ones are right; a capture without room is done without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from small_engines import draw_prompts, load, write_model

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from nanochat.engine import captures
from nanochat.engine.cuda_graphs import GraphStep
from nanochat.engine.llm import LLM
from nanochat.engine.outputs import CompletionOutput, FinishReason
from nanochat.engine.request import Request
from nanochat.engine.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu
LONG, SPARE = 12_000, 64 << 20  # tokens of a prompt whose gates take more bytes than are spared
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SHORT = [3, 18, 33, 100]  # tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        "qwen3", tmp_path_factory.mktemp("qwen3"), max_position_embeddings=16_384, intermediate_size=2048
    )


@pytest.fixture(scope="module")
def right(folder: Path) -> list[tuple[int, ...]]:
    """Each short prompt's reply, alone."""
    llm = engine(folder, enforce_eager=True)
    found = [llm.generate([prompt], GREEDY, use_tqdm=False)[0].token_ids for prompt in prompts()]
    llm.close()
    return found


def engine(folder: Path, **options) -> LLM:
    return load(
        folder, dtype="float32", num_blocks=1200, max_num_seqs=8, max_num_batched_tokens=16_384,
        enable_prefix_caching=False, **options,
    )  # fmt: skip


def prompts() -> list[list[int]]:
    return [draw_prompts(1, length, length, length)[0] for length in SHORT]


def run(llm: LLM, before: int, then: Callable[[], list[Request]] = list) -> dict[str, CompletionOutput]:
    """The short prompts' replies and those of what comes after `before` steps, by request."""
    done: dict[str, CompletionOutput] = {}
    requests = [Request(prompt, GREEDY) for prompt in prompts()]
    for request in requests:
        llm.core.add(request)
    steps = 0
    while llm.core.has_work:
        if steps == before:
            for request in then():
                llm.core.add(request)
        for update in llm.core.step():
            if update.finished is not None:
                done[update.request_id] = update.finished
        steps += 1
    assert steps > before
    names = [request.request_id for request in requests]
    return {str(names.index(name)) if name in names else "other": output for name, output in done.items()}


def check(done: dict[str, CompletionOutput], right: list[tuple[int, ...]]) -> list[str]:
    """Names of the requests that ended for want of memory; whatever was said is right, and of others all of it."""
    failed = [name for name, output in done.items() if output.finish_reason is FinishReason.ERROR]
    for place, reply in enumerate(right):
        got = done[str(place)].token_ids
        assert got == (reply[: len(got)] if str(place) in failed else reply), place
    assert all("out of memory" in (done[name].error or "") for name in failed)
    return failed


@contextmanager
def no_more_than(spare: int) -> Iterator[None]:
    """This process may take `spare` bytes more of the device than it uses: what earlier tests left free in its segments is
    held meanwhile."""
    torch.cuda.empty_cache()
    total, reserved = torch.cuda.get_device_properties(0).total_memory, torch.cuda.memory_reserved()
    held: list[torch.Tensor] = []
    try:
        torch.cuda.set_per_process_memory_fraction(reserved / total)
        for size in (32 << 20, 4 << 20):
            with suppress(torch.cuda.OutOfMemoryError):
                while True:
                    held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        torch.cuda.set_per_process_memory_fraction((reserved + spare) / total)
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_a_prompt_that_finds_no_room_beside_replies_ends_alone(
    folder: Path, right: list[tuple[int, ...]], eager: bool
) -> None:
    llm = engine(folder, enforce_eager=eager)
    assert check(run(llm, 8), right) == []  # captures, and libraries take what they take once
    (text,) = draw_prompts(1, 1, LONG, LONG)
    few = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    with no_more_than(SPARE):
        assert check(run(llm, 8, lambda: [Request(text, few)]), right) == ["other"]
        assert check(run(llm, 8), right) == [], "the next ones"
    done = run(llm, 8, lambda: [Request(text, few)])
    assert check(done, right) == [] and len(done["other"].token_ids) == 2
    assert llm.core.cache.num_used == 0
    llm.close()


@pytest.mark.parametrize("steps", [4, 9])
def test_a_decode_step_that_runs_out_of_memory_ends_one_reply(
    folder: Path, right: list[tuple[int, ...]], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end: keys are written, the rows on the device have not moved on, and nobody has read their last tokens yet."""
    monkeypatch.setattr(GraphStep, "done", lambda _: False)  # a device that is behind: steps are queued ahead
    llm = engine(folder, enforce_eager=True)
    model, passed = llm.core._runner.model, []
    whole = model.whole_logits

    def short(share: torch.Tensor) -> torch.Tensor:
        passed.append(share.shape[0])
        if len(passed) == steps:
            torch.empty(1 << 50, dtype=torch.uint8, device=share.device)
        return whole(share)

    monkeypatch.setattr(model, "whole_logits", short)
    failed = check(run(llm, 2), right)
    assert len(failed) == 1 and passed[steps - 1] == 4, "in a step of all four"
    assert check(run(llm, 2), right) == []
    llm.close()


def test_a_capture_that_finds_no_room_is_done_without_and_tried_again(
    folder: Path, right: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocation fails inside of the real capture, which must end and leave the engine's stream as it was."""
    monkeypatch.setattr(captures, "STEPS_WITHOUT", 8)
    llm = engine(folder)
    runner, attempts = llm.core._runner, []
    graphs, prefills = runner._graphs, runner._prefills

    def without_room(step: Callable) -> Callable:
        def short(*inputs):
            out = step(*inputs)
            if torch.cuda.is_current_stream_capturing():
                attempts.append(inputs)
                torch.empty(1 << 50, dtype=torch.uint8, device=runner.device)
            return out

        return short

    with monkeypatch.context() as patched:
        for owner in (graphs, prefills):
            patched.setattr(owner, "_step", without_room(owner._step))
        stream = torch.cuda.current_stream()
        assert check(run(llm, 2), right) == []
        for prompt, reply in zip(prompts(), right, strict=True):
            assert llm.generate([prompt], GREEDY, use_tqdm=False)[0].token_ids == reply
        assert torch.cuda.current_stream() == stream
    assert {len(inputs) for inputs in attempts} == {2, 4}, "of decode steps and of prompts"
    assert not graphs._captured and not prefills._captured
    for _ in range(3):
        assert check(run(llm, 2), right) == []
    assert graphs._captured, "there is room again"
    llm.close()


def test_a_load_leaves_no_more_behind_than_the_one_before(folder: Path) -> None:
    """torch keeps 32 MiB for cuBLAS for each stream that it ever saw."""
    left = []
    for _ in range(3):
        llm = engine(folder)
        llm.generate([prompts()[0]], GREEDY, use_tqdm=False)
        llm.close()
        del llm
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_reserved())
    assert left[2] == left[1], left
