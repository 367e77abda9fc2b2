"""Sums of small messages in one shot, where that is faster than NCCL: set up, tried and measured when a model is loaded.

All ranks do the same here, and agree on every outcome before they go on: one that cannot take part leaves the others
with NCCL.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.kernels.bundle import FusedReduce
from nanochat.kernels.nvrtc import DriverError
from nanochat.kernels.peer_memory import HANDLE_BYTES, PeerMemory

if TYPE_CHECKING:
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.kernels.triton_one_shot import OneShot, Outlet

_SIZES = (1, 8, 32, 128)  # rows of the messages that are measured
_TRIAL_LOOKS = 1 << 24  # some ten seconds: while a rank compiles, the others wait for it on the device
_INPUTS = 256  # of a product that is tried
_CHAIN, _REPLAYS = 20, 5  # sums in a measured graph, and how often it is replayed
_EPS = 1e-6


class Sums(FusedReduce):
    """A GPU's sums: in one shot what is small, with NCCL what is not."""

    def __init__(
        self, collectives: Collectives, end: OneShot, memory: PeerMemory, rows: int, *, collects: bool = True
    ) -> None:
        """`rows`: of a message at most. `collects`: whether products may send their results themselves."""
        self._collectives, self._end, self._memory = collectives, end, memory
        self._rows, self._collects = rows, collects

    def __call__(self, x: Tensor) -> Tensor:
        """The sum over all ranks; in x's place or not."""
        if not self.takes(x):
            with self._end.timed():
                return self._collectives.reduce(x)
        with self._collectives.counted():
            return self._end.sum(x)

    def takes(self, x: Tensor) -> bool:
        """Whether a message [..., width] is small enough."""
        return x.numel() <= self._rows * x.shape[-1] and self._end.takes(x)

    def add_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `FusedReduce`."""
        with self._collectives.counted():
            return self._end.add_norm(delta, x, weight, eps)

    def add(self, delta: Tensor, x: Tensor, *, pdl: bool = False) -> Tensor:
        """See `FusedReduce`."""
        with self._collectives.counted():
            return self._end.add(delta, x, pdl=pdl)

    def outlet(self, x: Tensor) -> Outlet | None:
        """See `FusedReduce`."""
        return self._end.outlet(x) if self._collects and self.takes(x) else None

    def collect(self, x: Tensor, *, pdl: bool = False) -> Tensor:
        """See `FusedReduce`."""
        with self._collectives.counted():
            return self._end.collect(x, pdl=pdl)

    def gathers(self, x: Tensor) -> bool:
        """Whether x is small enough to be put beside the other ranks' in one shot."""
        return self._end.gathers(x)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's x, [ranks, *x.shape]."""
        with self._collectives.counted():
            return self._end.gather(x)

    @property
    def seconds(self) -> float:
        """What sums took on the device so far, in one shot and by NCCL."""
        return self._end.seconds()

    @property
    def lost(self) -> bool:
        """Whether a peer was waited for in vain. Asks the device."""
        return bool(self._end.failed.item())

    def give_up(self) -> None:
        """A rank is lost: nobody waits for it any longer. From any thread."""
        self._end.give_up()

    def close(self) -> None:
        """Free the inbox, once the device is through with it; the other ranks have ended."""
        with contextlib.suppress(
            DriverError, RuntimeError
        ):  # a context that is broken has nothing to give back
            self.give_up()
            stream, until = torch.cuda.current_stream(self._end.failed.device), time.monotonic() + 1.0
            while not stream.query():
                if time.monotonic() > until:  # something else hangs there: freeing would wait for it
                    return
                time.sleep(0.001)
            self._memory.close()


def connect(collectives: Collectives, device: torch.device, width: int, dtype: torch.dtype) -> Sums | None:
    """Sums for messages of up to `width` columns; None, on every rank alike, where NCCL is as fast or there is no other way.

    Says in `collectives.compared` what was found.
    """
    rows = min(_SIZES[-1], torch.cuda.get_device_properties(device).multi_processor_count)
    joined = _join(collectives, device, rows, width)
    if joined is None:
        collectives.compared = "no GPU memory that the ranks share"
        return None
    end, memory = joined
    most = 0
    if _agree(collectives, device, _sound(collectives, end, device, width, dtype)):
        most, collectives.compared = _measure(collectives, end, device, width, dtype)
    else:
        collectives.compared = "sums in one shot did not come out right"
    if most == 0:
        _part(collectives, device, memory)
        return None
    collects = _agree(collectives, device, _sound_products(collectives, end, device, width, dtype))
    if collects:
        collectives.compared += ", small ones sent by the products"
    end.nanoseconds.zero_()
    return Sums(collectives, end, memory, most, collects=collects)


def _join(
    collectives: Collectives, device: torch.device, rows: int, words: int
) -> tuple[OneShot, PeerMemory] | None:
    """Make an inbox, hand its handle around, map the others'."""
    from nanochat.kernels.triton_one_shot import LOOKS, OneShot, inbox_bytes

    rank, ranks = collectives.rank, collectives.ranks
    memory: PeerMemory | None = None
    if _reaches_all(device, rank, ranks):
        with contextlib.suppress(DriverError):
            memory = PeerMemory(inbox_bytes(ranks, rows, words), device)
    handle = bytes(HANDLE_BYTES) if memory is None else memory.handle
    handles = collectives.exchange(
        torch.tensor([*handle, memory is not None], dtype=torch.uint8, device=device)
    )
    assert handles is not None
    there = [bytes(each) for each in handles.tolist()]
    inboxes: list[int] = []
    if memory is not None and all(each[-1] for each in there):
        with contextlib.suppress(DriverError):
            inboxes = [
                memory.address if other == rank else memory.map(each[:-1]) for other, each in enumerate(there)
            ]
    if _agree(collectives, device, len(inboxes) == ranks) and memory is not None:
        return OneShot(inboxes, rank, rows, words, device, LOOKS), memory
    _part(collectives, device, memory)
    return None


def _part(collectives: Collectives, device: torch.device, memory: PeerMemory | None) -> None:
    """Go without: nobody frees an inbox that another rank still has mapped. On every rank, with an inbox or not."""
    torch.cuda.synchronize(device)
    if memory is not None:
        memory.unmap()
    _agree(collectives, device, True)
    if memory is not None:
        memory.close()


def _reaches_all(device: torch.device, rank: int, ranks: int) -> bool:
    """Whether this rank's GPU can write the memory of every other one."""
    own = device.index or 0
    others = [own - rank + other for other in range(ranks) if other != rank]
    return all(torch.cuda.can_device_access_peer(own, other) for other in others)


def _agree(collectives: Collectives, device: torch.device, well: bool) -> bool:
    """Whether all is well on every rank."""
    said = collectives.exchange(torch.tensor([well], dtype=torch.int32, device=device))
    return said is not None and bool(said.all())


def _sound(
    collectives: Collectives, end: OneShot, device: torch.device, width: int, dtype: torch.dtype
) -> bool:
    """Whether a few sums come out as NCCL's do, in time."""
    looks, end.looks = end.looks, _TRIAL_LOOKS
    draw = torch.Generator(device).manual_seed(collectives.rank)
    well = True
    for rows in (1, end.rows, 3):
        x = torch.randn(rows, width, generator=draw, device=device).to(dtype)
        if not end.takes(x):
            return False
        whole = collectives.reduce(x.to(torch.float32, copy=True))
        well &= torch.allclose(end.sum(x).float(), whole, rtol=2**-6, atol=2**-6)
    end.looks = looks
    return well and not end.failed.item()


def _sound_products(
    collectives: Collectives, end: OneShot, device: torch.device, width: int, dtype: torch.dtype
) -> bool:
    """Whether what products send by themselves adds up to NCCL's sum."""
    from nanochat.kernels.triton_gemv import gemv

    looks, end.looks = end.looks, _TRIAL_LOOKS
    draw = torch.Generator(device).manual_seed(collectives.rank)
    weight = torch.randn(width, _INPUTS, generator=draw, device=device).to(dtype)
    y = (torch.randn(1, _INPUTS, generator=draw, device=device) / _INPUTS**0.5).to(dtype)
    x = torch.ones(1, width, dtype=dtype, device=device)
    whole = collectives.reduce(torch.nn.functional.linear(y, weight).float())
    well = True
    for _ in range(3):
        outlet = end.outlet(x)
        if outlet is None:
            return False
        gemv(y, weight, to=outlet)
        well &= torch.allclose(end.collect(x).float() - 1, whole, rtol=2**-5, atol=2**-4)
    end.looks = looks
    return well and not end.failed.item()


def _measure(
    collectives: Collectives, end: OneShot, device: torch.device, width: int, dtype: torch.dtype
) -> tuple[int, str]:
    """(the most rows for which one shot is faster, what was measured), the same on every rank."""
    from nanochat.kernels.triton_norm import add_rms_norm

    best, words = 0, ""
    weight = torch.ones(width, dtype=dtype, device=device)
    for rows in (rows for rows in _SIZES if rows <= end.rows):
        x = torch.zeros(rows, width, dtype=dtype, device=device)

        def in_one_shot(x: Tensor = x) -> object:
            return end.add_norm(x, x, weight, _EPS)

        def by_nccl(x: Tensor = x) -> object:
            return add_rms_norm(collectives.reduce(x), x, weight, _EPS)

        times = [_seconds(step, device) for step in (in_one_shot, by_nccl)]
        told = collectives.exchange(torch.tensor(times, dtype=torch.float64, device=device))
        assert told is not None
        one, other = told.amax(dim=0).tolist()  # the slowest rank's count
        collectives.measured[rows] = one, other
        words = words or f"one row in {one * 1e6:.1f} us, by NCCL in {other * 1e6:.1f}"
        if one >= other:
            break
        best = rows
    return best, f"{f'sums of up to {best} rows' if best else 'no sums'} in one shot ({words})"


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """What a step takes on the device, in a captured chain of them."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CHAIN):
            step()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    before.record()
    for _ in range(_REPLAYS):
        graph.replay()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1000 / (_CHAIN * _REPLAYS)
