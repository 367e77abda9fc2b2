"""What a rank's process does beside its steps."""

from __future__ import annotations

import functools
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat import SamplingParams
from nanochat.engine import garbage
from nanochat.engine.llm import LLM
from nanochat.engine.parallel import worker


@pytest.mark.usefixtures("rank_threads")
def test_a_worker_settles_once_before_its_first_step(tiny_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[str] = []
    monkeypatch.setattr(
        worker, "work", functools.partial(worker.work, settle=lambda: settled.append("settled"))
    )
    llm = LLM(tiny_folder("qwen3"), device="cpu", tensor_parallel_size=2, skip_tokenizer=True)
    assert settled == ["settled"]
    llm.generate([[3, 4, 5]], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    llm.close()
    assert settled == ["settled"]


def test_a_workers_process_leaves_alone_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks wait for one whose collector walks over torch."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(worker, "work", lambda *_, **options: given.update(options))
    monkeypatch.setattr(worker, "SharedMemory", lambda *_: SimpleNamespace(pulse=lambda rank: None))
    monkeypatch.setattr(worker, "Line", lambda _: None)
    monkeypatch.setattr(worker.socket, "socket", lambda fileno: None)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(worker.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(worker.os, "_exit", lambda code: None)
    worker.main(["1", "2", "3", "4", "5", "6", "folder"])
    assert given == {"settle": garbage.settle}


def test_what_is_there_is_left_alone_and_new_garbage_is_not() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(700, 10, 10)  # another test's application may have settled this process
    try:
        garbage.settle()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() != (700, 10, 10)
        cycle = SimpleNamespace()
        cycle.itself = cycle
        del cycle
        assert gc.collect() > 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
        if frozen:
            gc.freeze()
