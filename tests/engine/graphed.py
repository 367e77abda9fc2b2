"""The graphs of decode and of short prompts on a CPU: kernels in Triton's interpreter, the hash model, and a driver that
runs what it is told at once. Import `interpreted` before this.

A "captured" step is the step itself: launching the graph runs it again and leaves what it returns where the capture did.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hash_model import VOCABULARY, hash_config, hash_loaded, next_token
from torch import Tensor

from nanochat.engine import cuda_graphs, prefill_graphs
from nanochat.engine.captures import Captures
from nanochat.engine.config import BLOCK_SIZE
from nanochat.engine.core import EngineCore
from nanochat.engine.runner import ModelRunner
from nanochat.kernels import stream_calls

CPU = torch.device("cpu")


class GraphedHashModel:
    """`HashModel`, which reads what a captured step has: device tensors alone.

    Attributes:
        layouts: of the steps so far, and `told`: (slots, query_start, context_lens) as they were then.
        failures: raised by the next steps, one each; `None` lets one pass.
    """

    reduce = kernels = None

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            vocab_size=VOCABULARY, eos_token_ids=(), generation_defaults={}, num_layers=1, num_kv_heads=1, head_dim=1
        )  # fmt: skip
        self.layouts: list[Any] = []
        self.told: list[tuple[list[int], list[int], list[int]]] = []
        self.failures: list[Exception | None] = []

    def forward(self, ids: Tensor, positions: Tensor, layout: Any, kv_cache: Any) -> Tensor:
        self.layouts.append(layout)
        self.told.append((layout.slots.tolist(), layout.query_start.tolist(), layout.context_lens.tolist()))
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        keys = kv_cache[0][0].view(-1)
        written = layout.slots >= 0
        keys[layout.slots[written]] = ids[written].to(keys.dtype)
        hidden = torch.zeros(len(ids), 1)
        starts = layout.query_start.tolist()
        for seq, context in enumerate(layout.context_lens.tolist()):
            first, last = starts[seq], starts[seq + 1]
            if not context:
                assert not written[first:last].any(), "a row that is empty writes nothing"
                continue
            assert positions[first:last].tolist() == list(range(context - (last - first), context))
            table = layout.block_tables[seq].tolist()
            slots = [table[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(context)]
            hidden[first:last] = float(next_token([int(key) for key in keys[slots].tolist()]))
        return hidden

    def share_of_logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[:, 0].long(), VOCABULARY).float() * 50

    def whole_logits(self, share: Tensor) -> Tensor:
        return share

    logits = share_of_logits


class Driver:
    """Stands in for libcuda: copies are made at once, a graph's handle is the place of its step in `steps`."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.captures, self.capturing, self.streams = 0, False, 0
        self.pools: dict[int, bool] = {}  # whether a graph keeps it; of those in which a capture was begun
        self.no_room: Callable[[], bool] = lambda: False  # asked at each capture

        def to_device(device: int, host: int, size: int, stream: int) -> int:
            ctypes.memmove(device, host, size)
            return 0

        def launch(graph: Any, stream: Any) -> int:
            self.steps[graph]()
            return 0

        def nothing(*_: Any) -> int:
            return 0

        self.cuMemcpyHtoDAsync_v2 = to_device
        self.cuGraphLaunch, self.cuEventRecord, self.cuEventQuery = launch, nothing, lambda *_: 0


def install(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """CUDA as far as the graphs ask for it."""
    driver = Driver()
    stream = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None)

    @contextlib.contextmanager
    def capture(graph: Any, *, pool: int, **_: Any) -> Iterator[None]:
        driver.captures += 1
        assert driver.pools.get(pool, True), "torch's own: use_count > 0"
        driver.pools.setdefault(pool, False)  # until a graph keeps it
        if driver.no_room():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        driver.capturing = True
        try:
            yield
        finally:
            driver.capturing = False
        driver.pools[pool] = True

    def stream_made(*_: Any) -> Any:
        driver.streams += 1
        return stream

    fakes = {
        "graph_pool_handle": itertools.count().__next__, "Stream": stream_made, "current_stream": lambda *_: stream,
        "stream": lambda _: contextlib.nullcontext(), "synchronize": lambda *_: None, "graph": capture,
        "CUDAGraph": lambda **_: object(), "Event": lambda: SimpleNamespace(record=lambda: None, cuda_event=0),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    calls = stream_calls.StreamCalls(driver)
    for module in (cuda_graphs, prefill_graphs):
        monkeypatch.setattr(module, "StreamCalls", lambda: calls)
        _replay(module, driver, monkeypatch)
    return driver


def _replay(module: Any, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `_step` does last before a graph is made is what launching the graph does; one that draws is not done meanwhile."""
    kind = module.DecodeGraphs if module is cuda_graphs else module.PrefillGraphs
    step, last = kind._step, []

    def remembered(self: Any, *args: Any) -> Any:
        recorded = driver.capturing and module is cuda_graphs and args[-1] != "logits"
        out = None if recorded else step(self, *args)
        last[:] = [(self, args, out)]
        return out

    def executable(_: object) -> Any:
        self, args, out = last[0]

        def launch() -> None:
            for old, new in zip(tensors(out), tensors(step(self, *args)), strict=True):
                old.copy_(new)

        driver.steps.append(launch)
        return SimpleNamespace(handle=len(driver.steps) - 1)

    monkeypatch.setattr(kind, "_step", remembered)
    monkeypatch.setattr(module, "ExecutableGraph", executable)


def tensors(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else out or ()


def graphed_core(
    num_blocks: int = 40, *, eager: bool = False, max_model_len: int = 320, **options: Any
) -> Any:
    """(an engine whose runner uses graphs, its model)."""
    config = hash_config(num_blocks, enforce_eager=eager, **options)
    model = GraphedHashModel()
    loaded = hash_loaded(config)
    kv = [(torch.full((num_blocks, BLOCK_SIZE, 1, 1), -1.0), torch.zeros(1))]
    runner = ModelRunner(model, kv, config, CPU, max_model_len)  # type: ignore[arg-type]
    blocks = -(-max_model_len // BLOCK_SIZE)
    captures = Captures(alone=True)
    runner._graphs = cuda_graphs.DecodeGraphs(
        model,
        kv,
        runner._last_ids,
        config.max_num_seqs,
        blocks,
        captures,
        eager=eager,  # type: ignore[arg-type]
    )
    largest = min(config.max_num_batched_tokens, max_model_len)
    runner._prefills = prefill_graphs.PrefillGraphs(model, kv, blocks, CPU, captures, largest, eager=eager)  # type: ignore[arg-type]
    object.__setattr__(loaded, "runner", runner)
    object.__setattr__(loaded, "model", model)
    core = EngineCore(config, loaded)
    core.scheduler.lookahead = BLOCK_SIZE
    return core, model
