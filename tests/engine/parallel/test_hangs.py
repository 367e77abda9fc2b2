"""Ranks that hang, and ranks that are only slow: with a fault in a real process, in a load and in a step."""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from nanochat import SamplingParams
from nanochat.engine import llm as engine
from nanochat.engine.config import EngineConfig
from nanochat.engine.models.decoder import Decoder
from nanochat.engine.parallel import group
from nanochat.engine.parallel.processes import Workers
from nanochat.engine.parallel.watch import Bounds
from nanochat.engine.request import Request
from nanochat.engine.service import EngineService
from nanochat.engine.weights import Checkpoint
from nanochat.errors import EngineDead, OutOfMemory

SOON = Bounds(still=10)  # 2 s
FEW = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROMPT = [[3, 4, 5]]

# What a worker runs before anything else. `hang` is done in the place that `fault` picks, whose file says when: once torch
# is there, as importing it by itself would take longer than a piece of work may.
FAULT = """
import sys
if "nanochat.engine.parallel.worker" in sys.orig_argv:
    import contextlib
    import pathlib
    import threading
    import time

    from nanochat.kernels import headway

    whole, hung = threading.Event(), []

    def hang():
        pathlib.Path({mark!r}).write_text(str(time.process_time()))
        {hang}

    def after(calls, method):
        done = []

        def with_fault(*args, **options):
            done.append(1)
            if len(done) > calls:
                hang()
            return method(*args, **options)

        return with_fault

    def begin():
        {fault}

    @contextlib.contextmanager
    def longer(seconds, given=headway.longer, begun=[]):
        with given(seconds):
            yield
        if not begun:
            begun.append(begin())

    if {at_once}:
        hang()
    headway.longer = longer
"""
SLEEP, LOOP = "whole.wait()", "while True: pass"
BY_TURNS = "[whole.wait(0.02) or sum(range(1_000_000)) for _ in iter(int, 1)]"
EXIT = "import os; os._exit(3)"

AT_ONCE = "at once"
_WEIGHTS = "from nanochat.engine.weights import Checkpoint; "
BEFORE_THE_WEIGHTS = f"{_WEIGHTS}Checkpoint.__init__ = after(0, Checkpoint.__init__)"
IN_THE_WEIGHTS = f"{_WEIGHTS}Checkpoint._fill = after(12, Checkpoint._fill)"
AFTER_THE_WEIGHTS = (
    "import nanochat.engine.models.loading as m; m._account_for_all = after(0, m._account_for_all)"
)
BEFORE_READY = "import nanochat.engine.loading as m; m.allocate_kv = after(0, m.allocate_kv)"
IN_A_STEP = "from nanochat.engine.models.decoder import Decoder; Decoder._add = after(9, Decoder._add)"


class Place:
    """Where temporary folders go, and the fault in a worker that starts there."""

    def __init__(self, folder: Path) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._fault, self._mark = folder / "sitecustomize.py", folder / "since"
        self._before = processor_seconds()

    def fault(self, fault: str, hang: str) -> None:
        at_once = fault == AT_ONCE
        code = FAULT.format(
            fault="pass" if at_once else fault, hang=hang, mark=str(self._mark), at_once=at_once
        )
        self._fault.write_text(code)

    def mend(self) -> None:
        self._fault.unlink()

    @property
    def seconds(self) -> float:
        """For which the only worker so far, which has ended, computed in the fault: on a quiet machine all the time since."""
        return processor_seconds() - self._before - float(self._mark.read_text())

    def is_clean(self) -> bool:
        workers = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
        return not list(self.scratch.iterdir()) and not workers


def processor_seconds() -> float:
    """What ended child processes have computed."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


@pytest.fixture
def place(tmp_path: Path, tiny_folder, monkeypatch: pytest.MonkeyPatch) -> Place:
    tiny_folder("llama_biases")  # Transformers makes folders of its own when it makes its first model
    place = Place(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(place.scratch))
    return place


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that comes no further is lost after 2 s."""
    monkeypatch.setattr(group, "Workers", partial(Workers, bounds=SOON))


@pytest.fixture
def load(tiny_folder) -> Callable[..., engine.LLM]:
    return partial(engine.LLM, tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True)


def lost(rank: int, how: str, ranks: int = 2) -> str:
    """One clear error, and the whole of it. On a busy machine it takes a little longer to be sure."""
    how = how.replace(" while", r" for \d+ s while")
    return rf"^rank {rank} of {ranks} \(process \d+\) {how}: load the model again$"


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("fault", "hang", "how"),
    [
        (AT_ONCE, LOOP, "came no further while starting"),
        (BEFORE_THE_WEIGHTS, LOOP, "came no further while loading its weights"),
        (IN_THE_WEIGHTS, LOOP, "came no further while loading its weights"),
        (IN_THE_WEIGHTS, SLEEP, "did nothing while loading its weights"),
        (AFTER_THE_WEIGHTS, BY_TURNS, "came no further while loading its weights"),
        (BEFORE_READY, LOOP, "came no further while getting ready"),
    ],
)
def test_a_worker_that_hangs_while_it_loads_ends_the_load(fault, hang, how, place: Place, load) -> None:
    place.fault(fault, hang)
    with pytest.raises(EngineDead, match=lost(1, how)):
        load(tensor_parallel_size=2)
    assert place.is_clean()


def test_a_worker_that_computes_for_ever_while_it_loads_ends_the_load_within_10_s(place: Place, load) -> None:
    place.fault(IN_THE_WEIGHTS, LOOP)
    with pytest.raises(EngineDead, match=lost(1, "came no further while loading its weights")):
        load(tensor_parallel_size=2)
    assert place.seconds < 10
    assert place.is_clean()
    place.mend()
    llm = load(tensor_parallel_size=2)
    assert len(llm.generate(PROMPT, FEW, use_tqdm=False)[0].outputs[0].token_ids) == 4
    llm.close()


def test_a_worker_that_hangs_in_a_step_ends_the_engine_within_10_s(place: Place, tiny_folder) -> None:
    place.fault(IN_A_STEP, LOOP)
    service = EngineService()
    config = EngineConfig(model=tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True, num_blocks=8)
    service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    stream = service.submit(Request(PROMPT[0], replace(FEW, max_tokens=99)))
    with pytest.raises(EngineDead, match=lost(1, "came no further while in a step")):
        list(stream)
    assert place.seconds < 10
    place.mend()
    service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    tokens = [t for delta in service.submit(Request(PROMPT[0], FEW)) for t in delta.token_ids]
    service.close()
    assert len(tokens) == 4 and place.is_clean()


@pytest.mark.usefixtures("soon")
def test_of_four_ranks_the_one_that_hangs_is_named(place: Place, load) -> None:
    place.fault(IN_A_STEP, f"if sys.argv[1] == '2': {SLEEP}")
    llm = load(tensor_parallel_size=4)
    with pytest.raises(EngineDead, match=lost(2, "did nothing while in a step", 4)):
        llm.generate(PROMPT, FEW, use_tqdm=False)
    llm.close()
    assert place.is_clean()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("in_service", [True, False])
def test_rank_0_that_hangs_in_a_step_ends_the_engine(
    in_service: bool, place: Place, load, tiny_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    add = Decoder._add

    def hangs(self, *args):
        calls.append(1)
        while len(calls) == 10:
            pass
        return add(self, *args)

    monkeypatch.setattr(Decoder, "_add", hangs)
    message = lost(0, "came no further while in a step")
    if in_service:
        service = EngineService()
        config = EngineConfig(
            model=tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True, num_blocks=8
        )
        service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
        with pytest.raises(EngineDead, match=message):
            list(service.submit(Request(PROMPT[0], FEW)))
        service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
        tokens = [t for delta in service.submit(Request(PROMPT[0], FEW)) for t in delta.token_ids]
        service.close()
    else:
        llm = load(tensor_parallel_size=2)
        with pytest.raises(EngineDead, match=message):
            llm.generate(PROMPT, FEW, use_tqdm=False)
        llm.close()
        llm = load(tensor_parallel_size=2)
        tokens = llm.generate(PROMPT, FEW, use_tqdm=False)[0].outputs[0].token_ids
        llm.close()
    assert len(tokens) == 4 and place.is_clean()


@pytest.mark.usefixtures("soon")
def test_a_thread_that_cannot_be_called_off_is_left_behind(
    place: Place, tiny_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps in a call that does not return; readers learn of it, and a load gets another thread."""
    whole, hung = threading.Event(), threading.Event()
    add = Decoder._add

    def sleeps(self, *args):
        if not hung.is_set():
            hung.set()
            whole.wait()
        return add(self, *args)

    service = EngineService()
    config = EngineConfig(model=tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True, num_blocks=8)
    service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    left = service._thread
    monkeypatch.setattr(Decoder, "_add", sleeps)
    with pytest.raises(EngineDead, match=lost(0, "did nothing while in a step")):
        list(service.submit(Request(PROMPT[0], FEW)))
    service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    stream = service.submit(Request(PROMPT[0], replace(FEW, max_tokens=40)))
    whole.set()  # it wakes after all, and finds that its engine is gone
    tokens = [t for delta in stream for t in delta.token_ids]
    assert left is not None and left is not service._thread
    left.join(10)
    assert not left.is_alive() and service.stats().state == "ready"
    service.close()
    assert len(tokens) == 40 and place.is_clean()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ["llama_biases", "olmo2"])
def test_a_thread_that_cannot_be_called_off_is_left_behind_in_a_load_too(
    name: str, place: Place, tiny_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waited behind the load goes on; Transformers makes another model, although the thread was in the middle of one."""
    whole, hung = threading.Event(), threading.Event()
    fill = Checkpoint._fill

    def sleeps(self, *args) -> None:
        if not hung.is_set():
            hung.set()
            whole.wait()
        fill(self, *args)

    monkeypatch.setattr(Checkpoint, "_fill", sleeps)
    service = EngineService()
    config = EngineConfig(model=tiny_folder(name), device="cpu", skip_tokenizer=True, num_blocks=8)
    load = service.load(replace(config, tensor_parallel_size=2))
    left, waits = service._thread, service.submit(Request(PROMPT[0], FEW))
    with pytest.raises(EngineDead, match=lost(0, "did nothing while loading its weights")):
        load.wait(60.0)
    with pytest.raises(EngineDead, match=lost(0, "did nothing while loading its weights")):
        list(waits)
    service.load(config).wait(60.0)
    whole.set()  # it wakes after all, and must not touch what is no longer its own
    assert left is not None and left is not service._thread
    left.join(10)
    assert not left.is_alive() and service.stats().state == "ready"
    assert len([t for delta in service.submit(Request(PROMPT[0], FEW)) for t in delta.token_ids]) == 4
    service.close()
    assert place.is_clean()


@pytest.mark.usefixtures("soon")
def test_rank_0_that_hangs_while_it_loads_ends_the_load(
    place: Place, load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_) -> None:
        while True:
            pass

    monkeypatch.setattr(Checkpoint, "_fill", hangs)
    with pytest.raises(EngineDead, match=lost(0, "came no further while loading its weights")):
        load(tensor_parallel_size=2)
    assert place.is_clean()


# What is slow --------------------------------------------------------------------------------------


def slowly(pieces: int, seconds: float) -> str:
    """So many pieces of work that take so long each, where 2 s without headway are the limit."""
    return f"len(hung) == {pieces} or hung.append(whole.wait({seconds}))"


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("slow", [0, 1])
def test_a_load_in_slow_pieces_goes_on_and_so_does_the_rank_that_waits(
    slow: int, place: Place, load, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow == 1:
        place.fault(f"{_WEIGHTS}Checkpoint.read = after(0, Checkpoint.read)", slowly(5, 0.6))
    else:
        read, whole, calls = Checkpoint.read, threading.Event(), iter(range(5))

        def slow_read(*args, **options) -> None:
            whole.wait(0.0 if next(calls, None) is None else 0.6)
            read(*args, **options)

        monkeypatch.setattr(Checkpoint, "read", slow_read)
    started = time.monotonic()
    load(tensor_parallel_size=2).close()
    assert time.monotonic() - started > 3


@pytest.mark.usefixtures("soon")
def test_a_step_in_slow_pieces_goes_on_although_the_others_wait_longer_for_it(place: Place, load) -> None:
    """Two products of 1.2 s each between two collectives."""
    kernels = "from nanochat.kernels.reference import ReferenceKernels as Kernels"
    place.fault(f"{kernels}; Kernels.linear = after(0, Kernels.linear)", slowly(3, 1.2))
    llm, started = load(tensor_parallel_size=2, dtype="float32"), time.monotonic()
    tokens = llm.generate(PROMPT, replace(FEW, max_tokens=1), use_tqdm=False)[0].outputs[0].token_ids
    assert time.monotonic() - started > 3 and len(tokens) == 1
    llm.close()


@pytest.mark.usefixtures("soon")
def test_a_piece_of_a_file_may_take_longer(place: Place, load) -> None:
    """A call that reads does nothing for 3 s, where 2 s are the limit."""
    slow_file = "; ".join(
        [
            "import nanochat.engine.weights as m",
            "m.FileIO = type('Slow', (m.FileIO,), {'readinto': after(3, m.FileIO.readinto)})",
        ]
    )
    place.fault(slow_file, slowly(1, 3.0))
    llm = load(tensor_parallel_size=2)
    llm.close()


def test_a_worker_that_runs_out_of_memory_while_it_gets_ready_says_so(place: Place, load) -> None:
    place.fault(BEFORE_READY, "__import__('torch').empty(1 << 55)")
    with pytest.raises(OutOfMemory, match=r"^rank 1: it ran out of memory \(.*can't allocate memory"):
        load(tensor_parallel_size=2)


@pytest.mark.parametrize("fault", [IN_THE_WEIGHTS, BEFORE_READY])
def test_a_worker_that_dies_while_a_service_loads_is_told_and_the_service_goes_on(
    fault, tiny_folder, place: Place
) -> None:
    place.fault(fault, EXIT)
    service = EngineService()
    config = EngineConfig(model=tiny_folder("llama_biases"), device="cpu", skip_tokenizer=True, num_blocks=8)
    with pytest.raises(EngineDead, match="ended with code 3"):
        service.load(replace(config, tensor_parallel_size=2)).wait(60.0)
    service.load(replace(config, tensor_parallel_size=1)).wait(60.0)
    service.close()
