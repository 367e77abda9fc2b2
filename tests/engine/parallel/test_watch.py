"""When a rank counts as lost: each rule by itself, and with a fault in a real worker while it loads."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from nanochat.engine import llm as engine
from nanochat.engine.config import EngineConfig
from nanochat.engine.host import Progress
from nanochat.engine.parallel import group, watch
from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.processes import Workers
from nanochat.engine.parallel.watch import Bounds, Idle, Silence, Stage, Stall, Standing, Unmoved
from nanochat.engine.service import EngineService
from nanochat.errors import EngineDead, OutOfMemory

RANKS = 3
SOON = Bounds(silence=4, idle=4, unmoved=4, stall=0.05)


@pytest.fixture
def memory():
    descriptor = allocate(RANKS)
    yield SharedMemory(descriptor, RANKS)
    os.close(descriptor)


@pytest.fixture
def workers() -> list[Standing]:
    return [Standing(10 + rank, Stage.LOADING) for rank in range(1, RANKS)]


def looks(rule, number: int = 20, between=lambda: None):
    """What a rule finds in so many looks, and in which."""
    for look in range(number):
        found = rule.look()
        if found is not None:
            return found, look
        between()
    return None


def test_a_worker_whose_heart_stands_still_is_lost(memory, workers) -> None:
    found = looks(Silence(memory, workers, SOON), between=memory.pulse(1).beat)
    assert found == ((2, "gave no sign of life for 1 s"), 4)


def test_a_worker_that_starts_need_not_beat(memory, workers) -> None:
    for worker in workers:
        worker.stage = Stage.STARTING
    assert looks(Silence(memory, workers, SOON)) is None


def test_a_worker_that_does_nothing_while_it_is_waited_for_is_lost(memory, workers, monkeypatch) -> None:
    busy = {11: True, 12: False}
    monkeypatch.setattr(watch, "progress", lambda pid: Progress(1.0, busy[pid]))
    assert looks(Idle(memory, workers, SOON)) == ((2, "did nothing for 1 s while loading its weights"), 4)


def test_a_worker_that_computes_waits_in_a_collective_owes_nothing_or_is_gone_is_not_idle(
    memory, workers, monkeypatch
) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr(watch, "progress", lambda pid: Progress(0.06 * next(seconds), False))
    assert looks(Idle(memory, workers, SOON)) is None
    monkeypatch.setattr(watch, "progress", lambda pid: Progress(0.0, False))
    workers[0].owes = False
    memory.pulse(2).enter()
    assert looks(Idle(memory, workers, SOON)) is None
    memory.pulse(2).leave()
    monkeypatch.setattr(watch, "progress", lambda pid: None)
    assert looks(Idle(memory, workers, SOON)) is None


def test_signs_of_life_alone_are_no_work(memory, workers, monkeypatch) -> None:
    beats = iter(range(1000))
    monkeypatch.setattr(watch, "progress", lambda pid: Progress(1e-4 * next(beats), False))
    assert looks(Idle(memory, workers, SOON)) is not None


def test_where_no_rank_comes_further_the_one_that_is_behind_is_lost(memory, workers) -> None:
    memory.pulse(1).advance()
    workers[1].stage = Stage.GETTING_READY
    assert looks(Unmoved(memory, workers, SOON)) == (
        (1, "came no further for 1 s while loading its weights"),
        4,
    )


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("step", ["advance", "leave"])
def test_one_rank_that_moves_excuses_all_and_so_does_a_debt_paid(
    memory, workers, rank: int, step: str
) -> None:
    rule = Unmoved(memory, workers, SOON)
    assert looks(rule, between=getattr(memory.pulse(rank), step)) is None
    for worker in workers:
        worker.owes = False
    assert looks(rule) is None


def test_a_rank_that_does_not_come_to_a_collective_is_found_although_it_lives(memory) -> None:
    first = memory.pulse(0)
    memory.pulse(1).leave()  # rank 1 is one collective further than rank 2
    stall = Stall(memory, RANKS, SOON)
    first.enter()
    assert stall.look(busy=False) is None  # between steps nobody is waited for
    until = time.monotonic() + 10
    while (found := stall.look(busy=True)) is None:
        assert time.monotonic() < until
    assert found[0] == 2


# Real workers ------------------------------------------------------------------------------------

FAULT = """
import sys
if "nanochat.engine.parallel.worker" in sys.orig_argv:
    import threading
    import nanochat.engine.loading as loading
    from nanochat.engine.weights import Checkpoint

    whole, fill, fills = threading.Event(), Checkpoint._fill, []
    hang = {hang}

    def stops_in_the_middle(self, *args):
        fills.append(1)
        if len(fills) > 12:
            hang()
        fill(self, *args)

    {fault}
"""
SLEEP = "lambda: whole.wait()"
WORK = (
    "lambda: [whole.wait(0.02) or sum(range(50_000)) for _ in iter(int, 1)]"  # for ever, a little at a time
)
IN_THE_WEIGHTS = "Checkpoint._fill = stops_in_the_middle"
BEFORE_READY = "loading.allocate_kv = lambda *_: hang()"


@pytest.mark.parametrize(
    ("fault", "hang", "bounds", "why"),
    [
        (IN_THE_WEIGHTS, SLEEP, Bounds(idle=10), "did nothing for 2 s while loading its weights"),
        (BEFORE_READY, SLEEP, Bounds(idle=10), "did nothing for 2 s while getting ready"),
        # Long enough to start in on a busy machine.
        (IN_THE_WEIGHTS, WORK, Bounds(unmoved=60), "came no further for 12 s while loading its weights"),
        (BEFORE_READY, WORK, Bounds(unmoved=60), "came no further for 12 s while getting ready"),
    ],
)
def test_a_worker_that_hangs_while_it_loads_ends_the_load(
    fault, hang, bounds, why, tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama_biases")
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=fault, hang=hang))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(group, "Workers", partial(Workers, bounds=bounds))
    with pytest.raises(EngineDead, match=rf"^rank 1 of 2 \(process \d+\) {why}: load the model again$"):
        engine.LLM(folder, device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_worker_that_runs_out_of_memory_while_it_gets_ready_says_so(
    tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_too_much = "loading.allocate_kv = lambda *_: __import__('torch').empty(1 << 55)"
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(fault=takes_too_much, hang=SLEEP))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(OutOfMemory, match=r"^rank 1: it ran out of memory \(.*can't allocate memory"):
        engine.LLM(tiny_folder("llama_biases"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)


@pytest.mark.parametrize("fault", [IN_THE_WEIGHTS, BEFORE_READY])
def test_a_worker_that_dies_while_a_service_loads_is_told_and_the_service_goes_on(
    fault, tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        FAULT.format(fault=fault, hang="lambda: __import__('os')._exit(3)")
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    service = EngineService()
    config = EngineConfig(model=tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True, num_blocks=8)
    with pytest.raises(EngineDead, match="ended with code 3"):
        service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    service.load(replace(config, tensor_parallel_size=1)).wait(60.0)
    service.close()
