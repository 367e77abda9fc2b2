"""Which way a sum over GPUs goes: up to how many rows each is the fastest (`soundness` says which come out right).

All ranks do the same here, and come to the same decision: they make it from what all of them measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nanochat.engine.captures import run_aside
from nanochat.engine.parallel.soundness import ALL, going, launches_dependently

if TYPE_CHECKING:
    from nanochat.engine.parallel.collectives import Collectives
    from nanochat.kernels.triton_one_shot import OneShot
    from nanochat.kernels.triton_wide_sum import WideSum

# Rows of the messages that are measured; and the most that a step has.
SIZES = (1, 8, 32, 128, 256, 512, 2048)
STEPS = (1, 8)  # of those that steps of matrix-vector kernels send, which end with the residual
_INNER, _COPIES = 2048, 4  # of those that are measured, and how many take turns
_CHAIN, _REPLAYS = 20, 5  # sums in a measured graph, and how often it is replayed
_EPS = 1e-6


class Limits(NamedTuple):
    """Sums of up to `small` rows go in one shot, of up to `wide` rows in a wide sum, all others by NCCL; of up to `added` rows in
    one shot where only the residual follows. Wide sums of up to `flagless` rows go without flags, of `two_shots` rows and more in
    two shots; 0: none.
    """

    small: int
    wide: int
    added: int = 0
    two_shots: int = 0
    flagless: int = 0


class Ways(NamedTuple):
    """Seconds of a sum with residual and norm: in one shot, in a wide sum, by NCCL; in a wide one in two shots and without flags."""

    one_shot: float
    wide: float
    nccl: float
    two_shots: float = inf
    flagless: float = inf


def sizes_up_to(most: int) -> list[int]:
    """The numbers of rows that are measured where a message has so many at most."""
    return [*(size for size in SIZES if size < most), most]


def measure(
    collectives: Collectives, small: OneShot | None, wide: WideSum | None, device: torch.device, width: int,
    dtype: torch.dtype, sizes: list[int], *, in_two: bool = False, flagless: bool = False,
) -> Limits:  # fmt: skip
    """Put into `collectives.measured` what a sum takes each way, and say what follows from it. None: it cannot be used.

    Args:
        sizes: of the messages, in rows; ascending.
        in_two, flagless: wide sums may go in two shots, or without flags.
    """
    from nanochat.kernels.triton_flagless_rows import ROWS
    from nanochat.kernels.triton_norm import add_rms_norm

    weight = torch.ones(width, dtype=dtype, device=device)
    told: dict[int, Ways] = {}
    for rows in sizes:
        x = torch.zeros(rows, width, dtype=dtype, device=device)

        def by_nccl(x: Tensor = x) -> object:
            return add_rms_norm(collectives.reduce(x), x, weight, _EPS)

        times = [_seconds_through(end, x, weight) for end in (small, wide)] + [
            _seconds(by_nccl, device),
            inf,
            inf,
        ]
        if in_two and wide is not None:
            with going(wide, two_shots=1):
                times[3] = _seconds_through(wide, x, weight)
        if flagless and wide is not None and rows <= ROWS:
            with going(wide, flagless=ALL):
                times[4] = _seconds_through(wide, x, weight)
        told[rows] = Ways(*_slowest(collectives, times, device))
    limits = choose(told)
    for rows, ways in told.items():
        collectives.measured[rows] = ways.one_shot, _of_wide(ways, rows, limits), ways.nccl
    if small is None:
        return limits
    with nullcontext() if wide is None else going(wide, two_shots=limits.two_shots, flagless=limits.flagless):
        added = _measure_added(collectives, small, wide, limits, device, width, dtype)
    return limits._replace(added=added)


def _measure_added(
    collectives: Collectives, small: OneShot, wide: WideSum | None, limits: Limits, device: torch.device, width: int,
    dtype: torch.dtype,
) -> int:  # fmt: skip
    """Up to how many rows one launch that ends with the residual is faster than a sum another way and then the residual."""
    added, pdl = 0, launches_dependently(device)
    for rows in STEPS:
        x = torch.zeros(rows, width, dtype=dtype, device=device)

        def otherwise(x: Tensor = x, rows: int = rows) -> object:
            end = small if rows <= limits.small else wide if rows <= limits.wide else None
            return (collectives.reduce(x) if end is None else end.sum(x)) + x

        def in_one_shot(x: Tensor = x) -> object:
            return small.add(x, x, pdl=pdl)

        one_shot, other = _slowest(
            collectives, [_seconds(way, device) for way in (in_one_shot, otherwise)], device
        )
        if one_shot >= other:
            break
        added = rows
    return added


def _slowest(collectives: Collectives, times: list[float], device: torch.device) -> list[float]:
    """Each of these times, of the rank that took the longest."""
    told = collectives.exchange(torch.tensor(times, dtype=torch.float64, device=device))
    assert told is not None
    return told.amax(dim=0).tolist()


def measure_products(
    collectives: Collectives, end: OneShot, device: torch.device, width: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds of half a layer for one row: with a product that sends its results, and with results that are exchanged."""
    from nanochat.kernels.triton_gemv import gemv

    pdl = launches_dependently(device)
    matrices = [
        (torch.zeros(_INNER, width, dtype=dtype, device=device), torch.zeros(width, _INNER, dtype=dtype, device=device))
        for _ in range(_COPIES)
    ]  # fmt: skip
    norm, start = (torch.ones(*shape, dtype=dtype, device=device) for shape in ((width,), (1, width)))
    outlet, turn = end.outlet(start), cycle(matrices)

    def half_a_layer(sends: bool) -> Tensor:
        first, second = next(turn)
        y = gemv(start, first, norm=norm, eps=_EPS, pdl=pdl)
        if sends:
            gemv(y, second, pdl=pdl, late=True, to=outlet)
            return end.collect(start, pdl=pdl)
        return end.add(gemv(y, second, pdl=pdl), start, pdl=pdl)

    times = [_seconds(partial(half_a_layer, sends), device) for sends in (True, False)]
    sent, exchanged = _slowest(collectives, times, device)
    return sent, exchanged


def choose(measured: Mapping[int, Ways]) -> Limits:
    """Up to the first number of rows for which NCCL was the fastest: the small way up to the last for which it beat the wide ones;
    of those the one without flags up to the last for which it was the fastest, and two shots from where they always beat one.
    """
    limits = Limits(0, 0)
    for rows, ways in sorted(measured.items()):
        if min(ways) >= ways.nccl:
            break
        two_shots = (limits.two_shots or rows) if ways.two_shots < ways.wide else 0
        limits = limits._replace(wide=rows, two_shots=two_shots)
        if ways.flagless < min(ways.wide, ways.two_shots):
            limits = limits._replace(flagless=rows)
    for rows, ways in sorted(measured.items()):
        if rows <= limits.wide and ways.one_shot <= _of_wide(ways, rows, limits):
            limits = limits._replace(small=rows)
    return limits


def _of_wide(ways: Ways, rows: int, limits: Limits) -> float:
    """What a wide sum takes, the way that it goes."""
    if rows <= limits.flagless:
        return ways.flagless
    return ways.two_shots if 0 < limits.two_shots <= rows else ways.wide


def describe(limits: Limits, measured: Mapping[int, tuple[float, float, float]]) -> str:
    """The choice, for people."""
    ways = [f"up to {limits.small} rows in one shot"] if limits.small else []
    if limits.wide > limits.small:
        ways.append(f"up to {limits.wide}{'' if ways else ' rows'} in wide ones")
        if limits.flagless > limits.small:
            ways.append(f"up to {limits.flagless} without flags")
        if 0 < limits.two_shots <= limits.wide:
            ways.append(f"from {limits.two_shots} on in two shots")
    *own, nccl = measured[1]
    if limits.added > limits.small:
        ways.append(f"up to {limits.added}{'' if ways else ' rows'} with the residual alone in one shot")
    chosen = f"sums of {', '.join(ways)}" if ways else "no sums in one shot"
    return f"{chosen} (one row in {min(own) * 1e6:.1f} us, by NCCL in {nccl * 1e6:.1f})"


def _seconds_through(end: OneShot | WideSum | None, x: Tensor, weight: Tensor) -> float:
    if end is None or not end.takes(x):
        return inf
    return _seconds(lambda: end.add_norm(x, x, weight, _EPS), x.device)


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    """What a step takes on the device, in a captured chain of them."""
    run_aside(step, device)
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
