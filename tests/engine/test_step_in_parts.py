"""Which parts a step on a GPU is done in, and in which order; the graphs are stand-ins that write down what is asked of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hash_model import hash_config, hash_core, hash_loaded

from nanochat.engine.request import Request
from nanochat.engine.runner import ModelRunner
from nanochat.engine.sampling_params import SamplingParams
from nanochat.engine.scheduler import Chunk
from nanochat.engine.step import StepInParts
from nanochat.kernels.driver import DriverError


class Part:
    def __init__(self, chunks: list[Chunk], done: bool = True) -> None:
        self.chunks = chunks
        self.done = lambda: done

    def read(self) -> Any:
        return [True] * len(self.chunks), [chunk.start for chunk in self.chunks if chunk.samples]


class Graphs:
    """Both kinds of graphs."""

    def __init__(self, memory: bool = True) -> None:
        self.asked: list[str] = []
        self.memory = memory

    def make_ready(self, chunks: list[Chunk]) -> None:
        self.asked.append(f"ready for {len(chunks)}")

    def dispatch(self, chunks: list[Chunk]) -> Part:
        self.asked.append(f"decode {len(chunks)}")
        return Part(chunks)

    def hand_back(self) -> None:
        self.asked.append("hand back")

    def takes(self, chunks: list[Chunk]) -> bool:
        return len(chunks) == 1 and 1 < chunks[0].count <= 1024

    def run(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.asked.append(f"prefill {chunk.count}")
        return torch.zeros(1, 1), torch.zeros(1, 4)

    def whole(self, share: torch.Tensor) -> torch.Tensor:
        return share


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()


@pytest.fixture
def runner(graphs: Graphs) -> ModelRunner:
    made = hash_loaded(hash_config()).runner
    assert isinstance(made, ModelRunner)
    made._graphs = made._prefills = graphs  # type: ignore[assignment]
    return made


def reply(at: int = 5) -> Chunk:
    return Chunk(SimpleNamespace(prompt=(1, 2), plain=True, seat=0), at, 1, samples=True)  # type: ignore[arg-type]


def prompt(count: int = 40) -> Chunk:
    return Chunk(SimpleNamespace(prompt=(1,) * 90, plain=True, seat=1), 0, count, samples=False)  # type: ignore[arg-type]


def test_replies_alone_are_one_replay(runner: ModelRunner, graphs: Graphs) -> None:
    runner.dispatch([reply(), reply()])
    assert graphs.asked == ["decode 2"]


def test_a_prompt_beside_replies_is_two_replays_the_prompt_first(runner: ModelRunner, graphs: Graphs) -> None:
    step = runner.dispatch([reply(), reply(), prompt()])
    assert graphs.asked == ["ready for 2", "prefill 40", "decode 2"], "what captures comes first of all"
    assert [chunk.count for chunk in step.chunks] == [1, 1, 40], "and its chunk is the last one"


def test_when_memory_runs_out_for_the_prompt_no_reply_has_moved_on(
    runner: ModelRunner, graphs: Graphs
) -> None:
    graphs.memory = False
    with pytest.raises(torch.OutOfMemoryError):
        runner.dispatch([reply(), prompt()])
    assert graphs.asked == ["ready for 1"]


def test_where_only_a_prompt_is_read_the_rows_are_handed_back_first(
    runner: ModelRunner, graphs: Graphs
) -> None:
    """Else the row of a preempted reply would be there when it resumes, with the blocks that it had."""
    runner.dispatch([prompt()])
    assert graphs.asked == ["hand back", "prefill 40"]


def test_a_step_in_parts_is_done_when_all_of_it_is() -> None:
    first, second = Part([reply()]), Part([prompt()], done=False)
    assert not StepInParts([first, second]).done()
    assert StepInParts([first, first]).done()
    assert StepInParts([first, second]).read() == ([True, True], [5])


class OutOfMemory:
    """A runner that cannot prepare."""

    def __init__(self, runner: Any, error: RuntimeError) -> None:
        self._runner, self._error = runner, error
        self.unprepared = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def prepare(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), DriverError("cuGraphInstantiate: out of memory (2)")],
)
def test_an_engine_without_memory_to_prepare_goes_on_without(error: RuntimeError) -> None:
    core = hash_core()
    core._runner = OutOfMemory(core._runner, error)  # type: ignore[assignment]
    assert core.unprepared
    core.prepare()
    assert not core.unprepared
    core.add(Request([1, 2, 3], SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)))
    while core.has_work:
        core.step()


def test_what_is_in_flight_is_read_before_the_memory_goes() -> None:
    core = hash_core()
    parts = [Part([reply()]), Part([reply()])]
    read: list[Part] = []
    for part in parts:
        part.read = lambda part=part: read.append(part)  # type: ignore[method-assign]
        core._in_flight.append(part)  # type: ignore[arg-type]
    core.close()
    assert read == parts
