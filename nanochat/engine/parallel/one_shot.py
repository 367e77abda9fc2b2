"""Sums without NCCL, where that is faster: set up when a model is loaded.

All ranks do the same here, and agree on every outcome before they go on: one that cannot take part leaves the others
with NCCL.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanochat.engine.parallel.soundness import sound, sound_flagless, sound_in_two_shots, sound_products
from nanochat.engine.parallel.trial import Limits, describe, measure, measure_products, sizes_up_to
from nanochat.kernels.bundle import FusedReduce
from nanochat.kernels.driver import DriverError
from nanochat.kernels.peer_memory import HANDLE_BYTES, PeerMemory

if TYPE_CHECKING:
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.kernels.triton_one_shot import OneShot
    from nanochat.kernels.triton_outlet import Outlet
    from nanochat.kernels.triton_wide_sum import WideSum

_SMALL = 128  # rows at most in one shot
_HELD = 16  # times a message's bytes that must be free where its sums are measured; they take some five
_TIMED = 7  # of NCCL's sums one in so many is timed, and counts for all: two launches each. Odd: a layer has two kinds of sums


class Sums(FusedReduce):
    """A GPU's sums: in one shot what is small, in a wide sum what is larger, with NCCL what is larger still."""

    def __init__(
        self, collectives: Collectives, end: OneShot, wide: WideSum, memory: PeerMemory, limits: Limits, *,
        collects: bool = True,
    ) -> None:  # fmt: skip
        """`collects`: whether products may send their results themselves."""
        self._collectives, self._end, self._wide, self._memory = collectives, end, wide, memory
        self._limits, self._collects = limits, collects
        self._reduced = 0  # by NCCL

    def __call__(self, x: Tensor) -> Tensor:
        """The sum over all ranks; in x's place or not."""
        end = self._end if self.takes(x) else self._end_for(x)
        if end is None:
            turn, self._reduced = self._reduced, self._reduced + 1
            with self._end.clock.timed(_TIMED) if turn % _TIMED == 0 else contextlib.nullcontext():
                return self._collectives.reduce(x)
        with self._collectives.counted():
            return end.sum(x)

    def takes(self, x: Tensor) -> bool:
        """Whether a message [..., width] is small enough for one shot without a norm."""
        return x.numel() <= self._limits.added * x.shape[-1] and self._end.takes(x)

    def norms(self, x: Tensor) -> bool:
        """Whether a message [..., width] is small enough for one shot or for a wide sum."""
        return self._end_for(x) is not None

    def add_norm(self, delta: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `FusedReduce`."""
        end = self._end_for(delta)
        assert end is not None
        with self._collectives.counted():
            return end.add_norm(delta, x, weight, eps)

    def add(self, delta: Tensor, x: Tensor, *, pdl: bool = False) -> Tensor:
        """See `FusedReduce`."""
        with self._collectives.counted():
            return self._end.add(delta, x, pdl=pdl)

    def outlet(self, x: Tensor) -> Outlet | None:
        """See `FusedReduce`. For one row only: that was measured, and more rows may be cuBLAS's, which stores results."""
        one_row = x.numel() == x.shape[-1]
        return self._end.outlet(x) if self._collects and one_row and self.takes(x) else None

    def collect(self, x: Tensor, *, pdl: bool = False) -> Tensor:
        """See `FusedReduce`."""
        with self._collectives.counted():
            return self._end.collect(x, pdl=pdl)

    def gathers(self, x: Tensor) -> bool:
        """Whether x is small enough to be put beside the other ranks' in one shot."""
        return self._limits.added > 0 and self._end.gathers(x)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's x, [ranks, *x.shape]."""
        with self._collectives.counted():
            return self._end.gather(x)

    @property
    def seconds(self) -> float:
        """What sums took on the device so far, whichever way."""
        return self._end.clock.seconds()

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

    def _end_for(self, x: Tensor) -> OneShot | WideSum | None:
        """What sums a message of this size; None is NCCL."""
        if x.numel() <= self._limits.small * x.shape[-1] and self._end.takes(x):
            return self._end
        if x.numel() <= self._limits.wide * x.shape[-1] and self._wide.takes(x):
            return self._wide
        return None


def connect(
    collectives: Collectives, device: torch.device, width: int, dtype: torch.dtype, most: int
) -> Sums | None:
    """Sums for messages of up to `width` columns and `most` rows; None, on every rank alike, where NCCL is as fast or there is
    no other way.

    Says in `collectives.compared` what was found.
    """
    rows = _least(collectives, device, torch.cuda.get_device_properties(device).multi_processor_count)
    joined = _join(collectives, device, min(_SMALL, rows), width, dtype)
    if joined is None:
        collectives.compared = "no GPU memory that the ranks share"
        return None
    end, wide, memory = joined
    collectives.trial = end
    try:
        return _try(collectives, end, wide, memory, device, width, dtype, most)
    finally:
        collectives.trial = None


def _try(
    collectives: Collectives, end: OneShot, wide: WideSum, memory: PeerMemory, device: torch.device, width: int,
    dtype: torch.dtype, most: int,
) -> Sums | None:  # fmt: skip
    """What is right and faster than NCCL."""
    right = [
        _agree(collectives, device, sound(collectives, each, device, width, dtype)) for each in (end, wide)
    ]
    in_two = (
        right[1]
        and collectives.ranks > 2
        and _agree(collectives, device, sound_in_two_shots(collectives, wide, device, width, dtype))
    )
    flagless = right[1] and _agree(
        collectives, device, sound_flagless(collectives, wide, device, width, dtype)
    )
    limits, found = Limits(0, 0), list[str]()
    if any(right):
        usable = end if right[0] else None, wide if right[1] else None
        sizes = sizes_up_to(_fitting(collectives, device, most, width * dtype.itemsize))
        limits = measure(collectives, *usable, device, width, dtype, sizes, in_two=in_two, flagless=flagless)
        wide.two_shots, wide.flagless = limits.two_shots, limits.flagless
        found.append(describe(limits, collectives.measured))
    collects, said = _products_send(collectives, end, limits, device, width, dtype)
    found += said
    names = zip(("sums in one shot", "wide sums"), right, strict=True)
    found += [f"{name} did not come out right" for name, well in names if not well]
    collectives.compared = "; ".join(found)
    if limits.wide == 0 and limits.added == 0:
        _part(collectives, device, memory)
        return None
    end.clock.reset()
    return Sums(collectives, end, wide, memory, limits, collects=collects)


def _products_send(
    collectives: Collectives,
    end: OneShot,
    limits: Limits,
    device: torch.device,
    width: int,
    dtype: torch.dtype,
) -> tuple[bool, list[str]]:
    """Whether products send their results themselves, and what was found."""
    if not limits.added or not _agree(
        collectives, device, sound_products(collectives, end, device, width, dtype)
    ):
        return False, []
    sent, exchanged = measure_products(collectives, end, device, width, dtype)
    return sent < exchanged, [
        f"half a layer in {sent * 1e6:.1f} us where products send, else in {exchanged * 1e6:.1f}"
    ]


def _join(
    collectives: Collectives, device: torch.device, rows: int, width: int, dtype: torch.dtype
) -> tuple[OneShot, WideSum, PeerMemory] | None:
    """Make an inbox, hand its handle around, map the others'. `rows`: at most so many in one shot."""
    from nanochat.kernels.triton_one_shot import LOOKS, OneShot, inbox_bytes
    from nanochat.kernels.triton_row_inbox import LINE
    from nanochat.kernels.triton_wide_sum import WideSum, wide_bytes, wide_rows

    rank, ranks = collectives.rank, collectives.ranks
    row_bytes = width * dtype.itemsize
    many = wide_rows(ranks, row_bytes)
    begin = -(-inbox_bytes(ranks, rows, width) // LINE) * LINE  # of what wide sums go through
    memory: PeerMemory | None = None
    if _reaches_all(device, rank, ranks):
        with contextlib.suppress(DriverError):
            memory = PeerMemory(begin + wide_bytes(ranks, many, row_bytes), device)
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
        end = OneShot(inboxes, rank, rows, width, device, LOOKS)
        return end, WideSum([inbox + begin for inbox in inboxes], many, row_bytes, end), memory
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


def _fitting(collectives: Collectives, device: torch.device, most: int, row_bytes: int) -> int:
    """As many rows, up to `most`, as every rank has the memory for to measure their sums."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(_least(collectives, device, min(most, free // (_HELD * row_bytes))), 1)


def _least(collectives: Collectives, device: torch.device, number: int) -> int:
    """The smallest of every rank's number."""
    said = collectives.exchange(torch.tensor([number], dtype=torch.int32, device=device))
    assert said is not None
    return int(said.min())


def _agree(collectives: Collectives, device: torch.device, well: bool) -> bool:
    """Whether all is well on every rank."""
    said = collectives.exchange(torch.tensor([well], dtype=torch.int32, device=device))
    return said is not None and bool(said.all())
