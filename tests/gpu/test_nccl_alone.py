"""NCCL with one rank: the calls that a group of several makes, on the one GPU that is there; also in a captured graph."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.engine.parallel.channel import SharedMemory, allocate
from nanochat.engine.parallel.collectives import Collectives, join

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def collectives(tmp_path: Path) -> Iterator[Collectives]:
    descriptor = allocate(1)
    joined = join(tmp_path, 0, 1, torch.device("cuda:0"), SharedMemory(descriptor, 1).pulse(0))
    yield joined
    joined.abort()
    os.close(descriptor)


def test_sums_and_gathers_of_one_rank_are_what_it_has(collectives: Collectives) -> None:
    x = torch.arange(24, device="cuda", dtype=torch.float32).view(4, 6)
    assert torch.equal(collectives.reduce(x.clone()), x)
    together = collectives.exchange(x)
    assert together is not None and torch.equal(together, x[None])
    assert torch.equal(collectives.gather(x, 6), x)
    assert collectives.count == 3


def test_a_captured_sum_is_done_anew_at_each_replay(collectives: Collectives) -> None:
    x = torch.ones(4, 6, device="cuda", dtype=torch.bfloat16)
    collectives.reduce(x.clone())  # NCCL sets itself up outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = collectives.reduce(x * 2)
    for value in (1.0, 3.0):
        x.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, torch.full_like(x, 2 * value))
